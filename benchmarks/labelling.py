"""Proposals and review on flowers12, three of twelve species not in the index; figures from one run.

    python benchmarks/labelling.py proposals|simulate SHARED [--splits 6] [--looks 160] [--seeds 2] [--fast]

SHARED holds data/flowers12 and models/mobilenet_v1_embedder.onnx. A split says which three species are
unknown, and which 30 of the 60 training photos of each other species are in the index; all other photos are
the folder. The index is calibrated on itself, as `lmm-classifier calibrate` does it.

proposals: what the calibrated gates call unknown is clustered. ARI is over the truly unknown photos among
it, all stragglers as one cluster more. "grouped" is the share of these that are in a proposal, "purity" the
share of photos in proposals that are of their proposal's commonest label, "called unknown" the share of all
truly unknown photos.

simulate: 40 looks in the queue's order, and up to --looks in random order, with the same learner,
recalibrated each time it learns (--fast: never). What random order looks at does not depend on what was
learned, so it learns every 20 looks only, and its curve is read on the line between. The level is .93, and
what the queue reaches.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml
from sklearn.metrics import adjusted_rand_score

from lmm_classifier.corpus.images import open_image
from lmm_classifier.corpus.source import read_corpus
from lmm_classifier.labelling.clustering import propose
from lmm_classifier.labelling.incremental import IncrementalClassifier
from lmm_classifier.labelling.simulation.replay import Review, looks_needed, simulate
from lmm_classifier.models.loading import load_encoder
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.types import BoolArray, FloatArray

LEVEL = 0.93
LOOKS = 40
RANDOM_EVERY = 20


def main() -> None:
    """Embed, split, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("proposals", "simulate"))
    parser.add_argument("shared", type=Path)
    parser.add_argument("--splits", type=int, default=6)
    parser.add_argument("--looks", type=int, default=160)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--fast", action="store_true")
    options = parser.parse_args()
    vectors, labels, train = embedded(options.shared)
    if options.what == "proposals":
        proposals(vectors, labels, train, options.splits)
    else:
        reviews(vectors, labels, train, options)


def embedded(shared: Path) -> tuple[FloatArray, np.ndarray, BoolArray]:
    """All photos: float32 (n, d), their labels (n,), and which are of the training set."""
    with tempfile.TemporaryDirectory() as folder:
        description = {
            "model": str((shared / "models/mobilenet_v1_embedder.onnx").resolve()),
            "size": [224, 224],
            "layout": "NHWC",
            "dtype": "uint8",
            "resize": "squash",
            "interpolation": "bicubic",
        }
        path = Path(folder, "mobilenet.yaml")
        path.write_text(yaml.safe_dump(description), encoding="utf-8")
        encoder = load_encoder(ModelSpec("onnx", str(path)))
        vectors, labels, train = [], [], []
        for part in ("train", "test"):
            corpus = read_corpus(shared / "data/flowers12" / part)
            for start in range(0, len(corpus.items), 64):
                items = corpus.items[start : start + 64]
                vectors.append(encoder.encode([open_image(corpus.root / item.path) for item in items]))
                labels += [item.label for item in items]
                train += [part == "train"] * len(items)
    return np.concatenate(vectors), np.asarray(labels), np.asarray(train)


def split(labels: np.ndarray, train: BoolArray, seed: int) -> tuple[BoolArray, BoolArray]:
    """Which photos are in the index, and which are of the species that are not."""
    random = np.random.default_rng(seed)
    unknown = np.isin(labels, random.choice(np.unique(labels), 3, replace=False))
    indexed = np.zeros(len(labels), bool)
    for label in np.unique(labels[~unknown]):
        indexed[random.permutation(np.flatnonzero(train & (labels == label)))[:30]] = True
    return indexed, unknown


def proposals(vectors: FloatArray, labels: np.ndarray, train: BoolArray, splits: int) -> None:
    """The table of proposals."""
    print("split  ARI    grouped  purity  groups  clustered  of these known  called unknown")
    rows = []
    for seed in range(splits):
        indexed, unknown = split(labels, train, seed)
        learner = IncrementalClassifier.calibrated([vectors[indexed]], labels[indexed].tolist())
        folder, truths, strange = vectors[~indexed], labels[~indexed], unknown[~indexed]
        clustered = learner.answers([folder]).unknown
        found = propose(folder[clustered], learner.references[0], learner.labels)
        codes = np.full(int(clustered.sum()), -1)
        for number, proposal in enumerate(found):
            codes[proposal.members] = number
        true, asked = truths[clustered], strange[clustered]
        common = [np.unique(true[p.members], return_counts=True)[1].max() for p in found]
        row = (
            adjusted_rand_score(true[asked], codes[asked]),
            np.mean(codes[asked] >= 0),
            sum(common) / max(sum(len(p.members) for p in found), 1),
            len(found),
            clustered.sum(),
            np.sum(~asked),
            np.mean(clustered[strange]),
        )
        rows.append(row)
        print(f"{seed:5}  " + _row(row))
    print(" mean  " + _row(tuple(np.mean(rows, axis=0))))


def _row(row: tuple[float, ...]) -> str:
    return "{:.3f}  {:7.3f}  {:6.3f}  {:6.1f}  {:9.1f}  {:14.1f}  {:14.3f}".format(*row)


def reviews(vectors: FloatArray, labels: np.ndarray, train: BoolArray, options: argparse.Namespace) -> None:
    """The table of reviews."""
    print("split  order   looks: accuracy over all (over the untouched), labels in the index")
    queue: list[Review] = []
    chance: list[Review] = []
    again = not options.fast
    for seed in range(options.splits):
        indexed, _ = split(labels, train, seed)
        learner = IncrementalClassifier.calibrated([vectors[indexed]], labels[indexed].tolist())
        folder, truths = [vectors[~indexed]], labels[~indexed].tolist()
        started = time.perf_counter()
        queue.append(simulate(learner, folder, truths, looks=LOOKS, recalibrate=again))
        _show(seed, "queue", queue[-1], time.perf_counter() - started)
        for number in range(options.seeds):
            started = time.perf_counter()
            chance.append(
                simulate(
                    learner,
                    folder,
                    truths,
                    by="random",
                    looks=options.looks,
                    every=RANDOM_EVERY,
                    recalibrate=again,
                    seed=number,
                )
            )
            _show(seed, "random", chance[-1], time.perf_counter() - started)
    reached = float(np.mean([review.accuracy[-1] for review in queue]))
    untouched = float(np.mean([review.accuracy_untouched[-1] for review in queue]))
    print(f"queue at {LOOKS}: {reached:.4f} over all, {untouched:.4f} over the untouched")
    print(f"fewest labels in the index: {min(int(review.labels[-1]) for review in queue)}")
    for level in (0.85, 0.9, LEVEL, reached):
        needed, random = looks_needed(queue, level), looks_needed(chance, level)
        ratio = f"{needed / random:.2f}" if needed and random else "-"
        print(f"accuracy {level:.3f}: queue {needed}, random {random or f'> {options.looks}'}, ratio {ratio}")


def _show(seed: int, name: str, review: Review, seconds: float) -> None:
    points = zip(
        review.looked_at.tolist(),
        review.accuracy.tolist(),
        review.accuracy_untouched.tolist(),
        review.labels.tolist(),
        strict=True,
    )
    text = ", ".join(f"{looks}: {a:.3f} ({b:.3f}) {n}" for looks, a, b, n in points)
    print(f"{seed:5}  {name:6}  {text}; {review.given_wrong} given wrong; {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
