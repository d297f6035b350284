"""How many pixels of a photo a pipeline makes use of, and how photos are read."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from lmm_classifier import HybridClassifier, PipelineConfig, registry
from lmm_classifier.api.build_index import build_index
from lmm_classifier.corpus.corpus import SkippedFile
from lmm_classifier.corpus.images import open_image
from lmm_classifier.errors import ModelError
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.pipeline import Pipeline, Step
from lmm_classifier.steps.embed import Embed
from lmm_classifier.steps.rerank import Rerank
from lmm_classifier.types import EncoderContract, FloatArray, Sample
from synthetic import COLOURS, picture, write_corpus

QWEN_SIDE = 1002  # px: the root of 1280 x 28 x 28 is 1001.8


class Watching:
    """An encoder that writes down the sizes it is shown."""

    seen: ClassVar[list[tuple[int, int]]] = []

    def __init__(self, spec: ModelSpec) -> None:
        if spec.weights:
            self.input_size = int(spec.weights)

    @property
    def contract(self) -> EncoderContract:
        return EncoderContract("watching", "", "", "", "", 3, "float32")

    def encode(self, images: Sequence[Image.Image]) -> FloatArray:
        self.seen.extend(image.size for image in images)
        rows = np.asarray([np.asarray(image, np.float32).mean(axis=(0, 1)) + 1 for image in images])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@dataclass(frozen=True)
class Other(Step):
    """A step of another package that knows nothing of resolutions."""

    name: ClassVar[str] = "other"
    requires: ClassVar[frozenset[str]] = frozenset()
    provides: ClassVar[frozenset[str]] = frozenset()

    def run(self, batch: Sequence[Sample]) -> list[Sample]:
        return list(batch)


class Looks(Other):
    requires: ClassVar[frozenset[str]] = frozenset({"image"})


class Proposes(Other):
    provides: ClassVar[frozenset[str]] = frozenset({"regions"})


@pytest.fixture(autouse=True)
def watching(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(registry.BUILTINS["encoder"], "watching", registry.Entry(f"{__name__}:Watching"))
    yield
    Watching.seen.clear()


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (["100"], 100),
        ([""], None),
        (["100", Other()], 100),
        (["100", Looks()], None),
        ([Proposes(), "100"], None),
        (["100", "300"], 300),
        (["100", ""], None),
        ([Other()], 1),
        ([], 1),
    ],
)
def test_is_what_the_most_demanding_step_needs(steps: list[str | Step], expected: int | None) -> None:
    """A text stands for the step that embeds with an encoder of that many pixels."""
    wired = [Embed(ModelSpec("watching", step)) if isinstance(step, str) else step for step in steps]
    assert Pipeline(tuple(wired)).resolution() == expected


def test_of_a_reranker_is_known_without_opening_it() -> None:
    assert Rerank(ModelSpec("qwen-vl", "./nowhere")).resolution() == QWEN_SIDE
    assert Rerank(ModelSpec("fake", "fails")).resolution() is None


@pytest.mark.parametrize(
    ("side", "rerank", "shown"),
    [
        ("100", {"enabled": False}, (200, 150)),
        ("151", {"enabled": False}, (400, 300)),
        ("", {"enabled": False}, (1600, 1200)),
        ("100", {"model_name": "./nowhere"}, (1600, 1200)),
    ],
)
def test_a_classifier_decodes_no_more(
    side: str, rerank: dict[str, Any], shown: tuple[int, int], tmp_path: Path
) -> None:
    build_index(write_corpus(tmp_path / "corpus"), tmp_path / "index", encoder=ModelSpec("watching", side))
    Watching.seen.clear()
    picture(COLOURS["red"]).resize((1600, 1200)).save(tmp_path / "photo.jpg")
    settings = {"encoder": ModelSpec("watching", side), "retrieval": {"index_path": tmp_path / "index"}}
    classifier = HybridClassifier(PipelineConfig(**settings, rerank=rerank, allow_unknown=False))
    assert classifier.classify(tmp_path / "photo.jpg").label == "red"
    [by_file] = classifier.classify_files([tmp_path / "photo.jpg"])
    assert by_file.label == "red"  # type: ignore[union-attr]
    assert classifier.classify((tmp_path / "photo.jpg").read_bytes()).label == "red"
    assert Watching.seen == [shown] * 3


class TestFiles:
    """Photos are read in threads, a batch ahead of the steps."""

    @pytest.fixture
    def photos(self, tmp_path: Path) -> list[Path]:
        paths = [tmp_path / f"{i}.png" for i in range(23)]
        for i, path in enumerate(paths):
            Image.new("RGB", (i + 1, 3), (10 * i, 0, 0)).save(path)
        paths[4].write_bytes(b"no photo")
        paths[9].unlink()
        return paths

    @pytest.mark.parametrize("batch_size", [1, 4, 23, 64])
    def test_answers_are_those_of_one_by_one(self, photos: list[Path], batch_size: int) -> None:
        line = Pipeline((Embed(ModelSpec("fake")),), batch_size)
        found = list(line.run_files(photos))
        assert [(s.path, s.code) for s in found if isinstance(s, SkippedFile)] == [
            (str(photos[4]), "unsupported_format"),
            (str(photos[9]), "not_found"),
        ]
        assert [isinstance(each, Sample) for each in found] == [i not in (4, 9) for i in range(23)]
        for path, each in zip(photos, found, strict=True):
            if isinstance(each, Sample):
                alone = next(line.run([Sample.from_image(str(path), open_image(path))]))
                assert each.sample_id == str(path)
                for key, rows in alone.embeddings.items():
                    np.testing.assert_allclose(each.embeddings[key], rows, atol=1e-6)

    def test_they_may_be_read_for_somebody_else(self, photos: list[Path]) -> None:
        batches = list(Pipeline((Other(),), 4).read_files(photos))
        assert [len(batch) for batch in batches] == [4, 4, 4, 4, 4, 3]
        read = [each for batch in batches for each in batch]
        assert [s.sample_id if isinstance(s, Sample) else s.path for s in read] == [str(p) for p in photos]
        assert [i for i, each in enumerate(read) if isinstance(each, SkippedFile)] == [4, 9]

    def test_two_batches_are_open_at_most(self, photos: list[Path]) -> None:
        taken: list[Path] = []
        source = (taken.append(path) or path for path in photos * 10)  # type: ignore[func-returns-value]
        for i, _ in enumerate(Pipeline((Other(),), 4).run_files(source)):
            assert len(taken) <= i + 8

    def test_a_step_that_fails_ends_the_threads(self, photos: list[Path]) -> None:
        class Fails(Other):
            def run(self, batch: Sequence[Sample]) -> list[Sample]:
                raise ModelError("no more")

        before = threading.active_count()
        with pytest.raises(ModelError, match="no more"):
            list(Pipeline((Fails(),), 4).run_files(photos))
        assert threading.active_count() == before

    def test_of_no_photos_nothing_is_asked(self) -> None:
        assert list(Pipeline((Embed(ModelSpec("siglip", "./nowhere")),)).run_files([])) == []
