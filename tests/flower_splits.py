"""Flowers12 by a real embedder, three species not in the index: the splits that part H is measured on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from lmm_classifier.corpus.images import open_image
from lmm_classifier.corpus.source import read_corpus
from lmm_classifier.labelling.incremental import IncrementalClassifier
from lmm_classifier.models.loading import load_encoder
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.types import BoolArray, FloatArray


@dataclass(frozen=True)
class Flowers:
    """Vectors float32 (n, 1024), their labels, and which photos are of the training set."""

    vectors: FloatArray
    labels: np.ndarray
    train: BoolArray


@dataclass(frozen=True)
class FlowerSplit:
    """An index of 9 species x 30 photos, calibrated on itself; the other photos are the folder."""

    learner: IncrementalClassifier
    vectors: FloatArray
    truths: np.ndarray
    strange: BoolArray


def embed_flowers(realdata: Path, folder: Path, per_species: int = 60) -> Flowers:
    """The test photos and so many training photos of each species."""
    description = {
        "model": str(realdata / "models/mobilenet_v1_embedder.onnx"),
        "size": [224, 224],
        "layout": "NHWC",
        "dtype": "uint8",
        "resize": "squash",
        "interpolation": "bicubic",
    }
    (folder / "mobilenet.yaml").write_text(yaml.safe_dump(description))
    encoder = load_encoder(ModelSpec("onnx", str(folder / "mobilenet.yaml")))
    vectors, labels, train = [], [], []
    for part in ("train", "test"):
        corpus = read_corpus(realdata / "data/flowers12" / part)
        some = [
            item
            for label in corpus.labels
            for item in [item for item in corpus.items if item.label == label][:per_species]
        ]
        for start in range(0, len(some), 64):
            items = some[start : start + 64]
            vectors.append(encoder.encode([open_image(corpus.root / item.path) for item in items]))
            labels += [item.label for item in items]
            train += [part == "train"] * len(items)
    return Flowers(np.concatenate(vectors), np.asarray(labels), np.asarray(train))


def flower_split(flowers: Flowers, seed: int) -> FlowerSplit:
    random = np.random.default_rng(seed)
    labels = np.unique(flowers.labels)
    unknown = np.isin(flowers.labels, random.choice(labels, 3, replace=False))
    indexed = np.zeros(len(flowers.labels), bool)
    for label in np.unique(flowers.labels[~unknown]):
        indexed[random.permutation(np.flatnonzero(flowers.train & (flowers.labels == label)))[:30]] = True
    learner = IncrementalClassifier.calibrated([flowers.vectors[indexed]], flowers.labels[indexed].tolist())
    return FlowerSplit(learner, flowers.vectors[~indexed], flowers.labels[~indexed], unknown[~indexed])
