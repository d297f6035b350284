"""One collection per species of flower, by a real encoder; needs LMM_CLASSIFIER_REALDATA."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from sklearn.metrics import average_precision_score

from lmm_classifier import CollectionClassifier
from lmm_classifier.collection.sources.source import SourceOptions, read_source
from lmm_classifier.collection.store import Store
from lmm_classifier.collection.train import train
from lmm_classifier.errors import EncoderMismatchError
from lmm_classifier.models.spec import ModelSpec


@pytest.fixture(scope="module")
def store(realdata: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flowers")
    description = {
        "model": str(realdata / "models/mobilenet_v1_embedder.onnx"),
        "size": [224, 224],
        "layout": "NHWC",
        "dtype": "uint8",
    }
    (folder / "mobilenet.yaml").write_text(yaml.safe_dump(description))
    options = SourceOptions({"mobilenet": ModelSpec("onnx", str(folder / "mobilenet.yaml"))})
    report = train(read_source(str(realdata / "data/flowers12/train"), options, []), folder / "store")
    assert (len(report.trained), report.skipped) == (12, ())
    return folder / "store"


def test_mean_average_precision_on_the_test_photos(store: Path, realdata: Path) -> None:
    paths = sorted((realdata / "data/flowers12/test").glob("*/*.jpg"))
    assert len(paths) == 240
    classifier = CollectionClassifier(store)
    answers = [answer for _, answer in classifier.classify_files(paths)]
    species = classifier.collections()
    assert len(species) == 12
    p = np.asarray([[membership.probability for membership in answer] for answer in answers])
    labels = np.asarray([[path.parent.name == name for name in species] for path in paths])
    precisions = [average_precision_score(labels[:, i], p[:, i]) for i in range(12)]
    assert np.mean(precisions) >= 0.98  # measured .987
    said = np.asarray([[bool(membership.is_in_collection) for membership in answer] for answer in answers])
    assert np.mean(said == labels) > 0.985  # measured .992
    assert (said & labels).sum() / labels.sum() > 0.9  # found of what belongs


def test_a_classifier_given_another_encoders_vectors_refuses(store: Path, realdata: Path) -> None:
    photo = next((realdata / "data/flowers12/test").glob("daisy/*.jpg"))
    for other in ("descriptor", "fake"):
        classifier = CollectionClassifier(store, encoders={"mobilenet": ModelSpec(other)})
        with pytest.raises(EncoderMismatchError, match="1024 dimensions"):
            classifier.classify(photo, ["daisy"])
    resized = store.parent / "resized.yaml"
    body = yaml.safe_load((store.parent / "mobilenet.yaml").read_text()) | {
        "resize": "centre-crop",
        "crop": 0.8,
    }
    resized.write_text(yaml.safe_dump(body))
    classifier = CollectionClassifier(store, encoders={"mobilenet": ModelSpec("onnx", str(resized))})
    with pytest.raises(EncoderMismatchError, match="fingerprint"):  # the same weights, other pixels
        classifier.classify(photo, ["daisy"])
    part = Store(store).snapshot().version("daisy").parts[0]
    assert (part.family, part.dimensionality) == ("onnx", 1024)
