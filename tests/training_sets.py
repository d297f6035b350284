"""Training sets made on the spot, and stores trained from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from collections_service import blobs
from lmm_classifier.collection.train import Trained, TrainOptions, train
from lmm_classifier.collection.training_set import EmbeddingPart, TrainingSet, unit_rows
from lmm_classifier.models.loading import load_encoder
from lmm_classifier.models.spec import ModelSpec
from synthetic import COLOURS, picture

DEFAULTS = TrainOptions()
FAKE = ModelSpec("fake")
FAKE_PART = EmbeddingPart("fake", 48, load_encoder(FAKE).contract.fingerprint, "fake", "", "", "float32")


def training_set(
    collection: str = "7", n: int = 90, d: int = 8, seed: int = 0, gap: float = 1.0
) -> TrainingSet:
    """Vectors of an encoder that nobody knows."""
    vectors, labels = blobs(n, d, seed, gap)
    items = tuple(f"{seed}-{i}" for i in range(n))
    return TrainingSet(
        collection,
        f"name of {collection}",
        "whole_image",
        (EmbeddingPart("made_up", d),),
        unit_rows(vectors, "x"),
        labels,
        items,
    )


def of_colour(
    collection: str = "7", colour: str = "red", region: str = "whole_image", n: int = 90
) -> TrainingSet:
    """Pictures of a colour against those of the two others, by the fake encoder."""
    names = sorted(COLOURS)
    pictures = [picture(COLOURS[names[i % 3]], seed=i) for i in range(n)]
    labels = np.asarray([names[i % 3] == colour for i in range(n)])
    vectors = load_encoder(FAKE).encode(pictures)
    made = training_set(collection, n)
    return replace(
        made, name=colour, derivative_type=region, parts=(FAKE_PART,), vectors=vectors, labels=labels
    )


def trained(folder: Path, *sets: TrainingSet, options: TrainOptions = DEFAULTS) -> tuple[Trained, ...]:
    """All of them, of which none may be skipped."""
    report = train(sets, folder, options)
    assert report.skipped == ()
    return report.trained
