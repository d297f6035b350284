"""What a calibration promises, measured on photos that it has not seen."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from sklearn.metrics import roc_auc_score

from lmm_classifier import HybridClassifier, PipelineConfig
from lmm_classifier.api.build_index import build_index
from lmm_classifier.calibration.calibrate import calibrate
from lmm_classifier.calibration.targets import CalibrationTarget
from lmm_classifier.checkpoints.digits import write_digits
from lmm_classifier.corpus.corpus import Corpus
from lmm_classifier.corpus.images import open_image
from lmm_classifier.corpus.source import read_corpus
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.pipeline import Pipeline
from lmm_classifier.steps.embed import Embed
from lmm_classifier.types import Sample

# Measured: of the flowers (12 splits) .8, 5.3 and 9.3 % are rejected, of the digits (8) .4, 3.6 and 8.2 %.
KEPT = (0.99, 0.95, 0.90)
DIGITS = ModelSpec("siglip", "shipped:siglip-digits", dtype="float32")


@dataclass(frozen=True)
class Split:
    """An index, photos that are not in it, embedded, and which labels of the index take part."""

    encoder: ModelSpec
    index: Path
    photos: Sequence[Sample]
    labels: tuple[str, ...]

    def classifier(self, **options: object) -> HybridClassifier:
        return HybridClassifier(
            PipelineConfig(
                encoder=self.encoder,
                retrieval={"index_path": self.index, "top_k": 20},
                rerank={"enabled": False},
                labels=self.labels,
                **options,
            )
        )

    def asked(self, **options: object) -> list[Sample]:
        """What the steps after `embed` make of the photos."""
        classifier = self.classifier(**options)
        classifier.check_index()
        samples = list(self.photos)
        for step in classifier.pipeline.steps[1:]:
            samples = step.run(samples)
        return samples

    def known(self) -> np.ndarray:
        return np.asarray([photo.truth in self.labels for photo in self.photos])


def embedded(encoder: ModelSpec, corpus: Corpus) -> list[Sample]:
    samples = [
        Sample.from_image(item.path, open_image(corpus.root / item.path), truth=item.label)
        for item in corpus.items
    ]
    return list(Pipeline((Embed(encoder=encoder),), 64).run(samples))


@pytest.fixture(scope="module")
def flowers(realdata: Path, tmp_path_factory: pytest.TempPathFactory) -> Split:
    """All twelve species, by a real pretrained embedder."""
    folder = tmp_path_factory.mktemp("flowers")
    model = {"model": str(realdata / "models/mobilenet_v1_embedder.onnx"), "size": [224, 224]}
    description = {
        **model,
        "layout": "NHWC",
        "dtype": "uint8",
        "resize": "squash",
        "interpolation": "bicubic",
    }
    (folder / "mobilenet.yaml").write_text(yaml.safe_dump(description))
    encoder = ModelSpec("onnx", str(folder / "mobilenet.yaml"))
    build_index(realdata / "data/flowers12/train", folder / "index", encoder=encoder)
    corpus = read_corpus(realdata / "data/flowers12/test")
    return Split(encoder, folder / "index", embedded(encoder, corpus), corpus.labels)


def without(flowers: Split, seed: int, count: int = 3) -> Split:
    """The same without some species, which nothing but the unknown photos shows."""
    out = set(np.random.default_rng(seed).choice(flowers.labels, count, replace=False).tolist())
    kept = tuple(label for label in flowers.labels if label not in out)
    return Split(flowers.encoder, flowers.index, flowers.photos, kept)


def test_closed_set_of_flowers(flowers: Split) -> None:
    calibrate(flowers.classifier())
    found = [
        sample.scores.labels[sample.scores.values[0].argmax()] == sample.truth  # type: ignore[union-attr]
        for sample in flowers.asked()
    ]
    assert np.mean(found) >= 232 / 240  # what 20-NN and LDA reach alone; measured 234


@pytest.mark.slow
def test_held_out_species_look_unknown(flowers: Split) -> None:
    """Three of twelve species held out, twelve times; measured .9376. Single scores: .742 to .934 there."""
    areas, rejected = [], {kept: [] for kept in KEPT}  # type: ignore[var-annotated]
    for seed in range(12):
        split = without(flowers, seed)
        for kept in KEPT if seed < 4 else (0.95,):
            fitted, _ = calibrate(split.classifier(), CalibrationTarget(keep_known=kept))
            assert not set(fitted.labels or ()) & (set(flowers.labels) - set(split.labels))
            answers = split.asked()
            known = split.known()
            statuses = np.asarray([sample.verdicts[0].status for sample in answers])  # type: ignore[index]
            rejected[kept].append(np.mean(statuses[known] == "unknown"))
        closeness = [float(sample.scores.closeness[0]) for sample in answers]  # type: ignore[union-attr]
        areas.append(roc_auc_score(known, closeness))
    assert np.mean(areas) >= 0.935
    for kept, shares in rejected.items():
        assert np.mean(shares) == pytest.approx(1 - kept, abs=0.02)


@pytest.mark.slow
def test_known_digits_are_rejected_as_often_as_asked(tmp_path: Path) -> None:
    write_digits(tmp_path / "all")
    photos = [
        (item.label, path / item.path)
        for path in (tmp_path / "all/index", tmp_path / "all/calibration", tmp_path / "all/query")
        for item in read_corpus(path).items
    ]
    rejected = {kept: [] for kept in KEPT}  # type: ignore[var-annotated]
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(len(photos))
        for position, i in enumerate(order.tolist()):
            label, photo = photos[i]
            side = "index" if position % 2 else "new"
            (tmp_path / str(seed) / side / label).mkdir(parents=True, exist_ok=True)
            shutil.copy(photo, tmp_path / str(seed) / side / label / photo.name)
        work = tmp_path / str(seed)
        build_index(work / "index", work / "vectors", encoder=DIGITS)
        new = read_corpus(work / "new")
        split = Split(DIGITS, work / "vectors", embedded(DIGITS, new), new.labels)
        for kept in KEPT:
            calibrate(split.classifier(), CalibrationTarget(keep_known=kept))
            statuses = [sample.verdicts[0].status for sample in split.asked()]  # type: ignore[index]
            rejected[kept].append(np.mean([status == "unknown" for status in statuses]))
    for kept, shares in rejected.items():
        assert np.mean(shares) == pytest.approx(1 - kept, abs=0.02)
