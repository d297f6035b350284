"""The smallest photo, the largest one that is taken, and a larger one, through every step that looks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lmm_classifier.api.serialize import serialize_sample
from lmm_classifier.corpus.corpus import SkippedFile
from lmm_classifier.corpus.images import DEFAULT_LIMITS
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.pipeline import Pipeline, Step
from lmm_classifier.steps.caption import Caption
from lmm_classifier.steps.detect import Detect
from lmm_classifier.steps.embed import Embed
from lmm_classifier.steps.focus import Focus
from lmm_classifier.steps.label import Label
from lmm_classifier.steps.segment import Segment
from lmm_classifier.steps.segment_panoptic import SegmentPanoptic
from lmm_classifier.types import Sample
from segmentation_graphs import write_decoder, write_encoder
from shell import run
from tiny_vision import write_convnext

FAKE = ModelSpec("fake")
LARGEST = (10_000, 5_000)  # px: 50 million, the limit


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sizes")
    Image.new("RGB", (1, 1), (250, 0, 0)).save(folder / "pixel.png")
    large = Image.new("RGB", LARGEST, (20, 20, 20))
    large.paste((250, 250, 250), (1000, 1000, 9000, 4000))
    large.save(folder / "large.jpg", quality=50)
    Image.new("L", (LARGEST[0], LARGEST[1] + 1)).save(folder / "larger.png")
    write_encoder(folder / "sam2/encoder.onnx")
    write_decoder(folder / "sam2/decoder.onnx", np.full((1, 256, 256), 9, np.float32), (0.9,))
    write_convnext(folder / "convnext")
    return folder


def every_step(folder: Path) -> tuple[Step, ...]:
    sam2, convnext = ModelSpec("sam2", str(folder / "sam2")), str(folder / "convnext")
    return (
        Detect(FAKE),
        Detect(ModelSpec("mtcnn")),
        Focus("person", on_missing="fallback"),
        Segment(model=sam2),
        SegmentPanoptic(FAKE),
        Embed(ModelSpec("siglip", "shipped:siglip-digits", dtype="float32")),
        Label(ModelSpec("image-classifier", convnext, dtype="float32"), top_k=None),
        Caption(FAKE),
    )


@pytest.mark.parametrize(("name", "size", "box"), [
    ("pixel.png", (1, 1), (0, 0, 1, 1)),
    ("large.jpg", LARGEST, (1000, 1000, 9000, 4000)),
])  # fmt: skip
def test_every_step_takes_it(
    folder: Path, name: str, size: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    steps = every_step(folder)
    if name == "large.jpg":  # MTCNN alone takes 14 s and 3 GB of it on two cores
        steps = (steps[0], *steps[2:])
    [found] = Pipeline(steps).run_files([folder / name])
    assert isinstance(found, Sample)
    assert found.image.size == size
    assert found.target is not None
    np.testing.assert_allclose(found.target.box, box, atol=8)  # JPEG's blocks
    masks = [region.mask for region in found.regions if region.mask is not None]
    assert masks
    assert all(mask.shape == size[::-1] for mask in masks)
    answer = json.loads(json.dumps(serialize_sample(found)))
    assert len(answer["labelings"][0]) == 5
    assert sum(each["score"] for each in answer["labelings"][0]) == pytest.approx(1, abs=1e-5)
    [[vector]] = answer["embeddings"].values()
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    assert len(answer["captions"]) == 1


def test_one_row_of_pixels_more_is_refused_with_a_code(folder: Path) -> None:
    """Before it is decoded, in Python and in the shell."""
    assert DEFAULT_LIMITS.max_pixels == LARGEST[0] * LARGEST[1]
    [found] = Pipeline((Embed(FAKE),)).run_files([folder / "larger.png"])
    assert isinstance(found, SkippedFile)
    assert found.code == "too_many_pixels"
    assert found.reason == "50010000 pixels exceed the limit of 50000000"
    result = run("run", "embed", "larger.png", "-p", "encoder.family=fake", cwd=folder)
    assert result.returncode == 1
    assert json.loads(result.stdout)["code"] == "too_many_pixels"
    assert "Traceback" not in result.stderr
