"""The four helpers for one photo."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lmm_classifier.api.vision import classify_image, embed, labels, similarity
from lmm_classifier.errors import ConfigError, ImageError
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.types import LabelScore

FAKE = ModelSpec("fake")
REDDISH = Image.new("RGB", (8, 6), (99, 49, 49))


def test_classify_names_the_likeliest_first() -> None:
    assert classify_image(REDDISH, 1, FAKE) == (LabelScore("red", 0.5, ("crimson",)),)
    assert [each.label for each in classify_image(REDDISH, model=FAKE)] == ["red", "green", "blue"]
    assert len(classify_image(REDDISH, None, FAKE)) == 3


def test_labels_are_all_names_of_all_classes_that_pass() -> None:
    assert labels(REDDISH, model=FAKE) == ["red", "crimson"]
    assert labels(REDDISH, 0.25, FAKE) == ["red", "crimson", "green", "blue"]
    assert labels(REDDISH, 0.51, FAKE) == []


def test_a_photo_is_whatever_open_image_takes(tmp_path: Path) -> None:
    file = io.BytesIO()
    REDDISH.save(file, "PNG")
    (tmp_path / "photo.png").write_bytes(file.getvalue())
    sources = [
        REDDISH,
        file.getvalue(),
        tmp_path / "photo.png",
        str(tmp_path / "photo.png"),
        np.asarray(REDDISH),
    ]
    assert len({classify_image(source, model=FAKE) for source in sources}) == 1
    with pytest.raises(ImageError):
        labels(tmp_path / "missing.jpg", model=FAKE)


def test_embed_gives_a_unit_vector() -> None:
    vector = embed(REDDISH, FAKE)
    assert (vector.shape, vector.dtype) == ((48,), np.float32)
    assert np.linalg.norm(vector) == pytest.approx(1)


def test_similarity_is_the_cosine() -> None:
    assert similarity([3, 4], [4, 3]) == pytest.approx(24 / 25)
    assert similarity([1, 0], [-2, 0]) == -1
    assert similarity([0, 0], [1, 2]) == 0
    assert similarity(embed(REDDISH, FAKE), embed(REDDISH, FAKE)) == pytest.approx(1)
    assert -1 <= similarity([0.1] * 3, [0.1] * 3) <= 1


@pytest.mark.parametrize(("a", "b"), [([1, 2], [1, 2, 3]), ([[1]], [[1]]), ([np.nan], [1]), (1, 1)])
def test_similarity_refuses(a: object, b: object) -> None:
    with pytest.raises(ValueError, match="two finite vectors of one length"):
        similarity(a, b)  # type: ignore[arg-type]


def test_wrong_options_are_one_line() -> None:
    for call in (
        lambda: classify_image(REDDISH, 0, FAKE),
        lambda: labels(REDDISH, 2.0, FAKE),
        lambda: classify_image(REDDISH, model=ModelSpec("image-clasifier")),
        lambda: embed(REDDISH, ModelSpec("nonsense")),
    ):
        with pytest.raises(ConfigError) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_importing_it_opens_no_model_library() -> None:
    code = "import sys, lmm_classifier.api.vision; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=dict(os.environ), check=False).returncode == 0
