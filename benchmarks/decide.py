"""What deciding costs beside searching; ratios from one run.

    python benchmarks/decide.py [--rows 20000] [--dim 1152] [--labels 100] [--queries 1000] [--rounds 15]

Heads, novelty score and gates of a batch, with every score and all heads taking part, against exact search of
the same queries: the calculation alone, then the steps `vote` and `open_set` that do it for the classifier.
All take turns, so that a drift of the machine's speed hits all; the figures are medians, and the median of
the ratios to the search of the same round.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import faiss
import numpy as np
from PIL import Image

from lmm_classifier import HybridClassifier, PipelineConfig
from lmm_classifier.calibration.calibrate import calibrate
from lmm_classifier.decision.gates import route
from lmm_classifier.decision.heads import HEADS, HeadSettings, Queries
from lmm_classifier.decision.novelty import SCORES, Combination
from lmm_classifier.index.build import BuildOptions
from lmm_classifier.index.calibration import read_calibration, write_calibration
from lmm_classifier.index.npz import write_npz
from lmm_classifier.index.records import Record, Records
from lmm_classifier.index.search import open_index
from lmm_classifier.index.update import import_npz
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.types import EncoderContract, FloatArray, Sample, Scores, read_only, required

K = 20


def main() -> None:
    """Time, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    for name, default in (
        ("rows", 20_000),
        ("dim", 1152),
        ("labels", 100),
        ("queries", 1000),
        ("rounds", 15),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    faiss.omp_set_num_threads(2)
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(options.labels, options.dim))
    vectors, asked = (_around(centres, n, rng) for n in (options.rows, options.queries))
    with tempfile.TemporaryDirectory() as folder:
        classifier = _calibrated(Path(folder), vectors, options.labels)
        calls = _calls(classifier, asked)
        times = [[_milliseconds(call) for call in calls.values()] for _ in range(options.rounds + 1)][1:]
    print(f"{options.queries} queries, {options.rows} x {options.dim}, {options.labels} labels; target .15")
    for i, name in enumerate(calls):
        took, ratio = median(row[i] for row in times), median(row[i] / row[0] for row in times)
        print(f"{name:22} {took:8.1f} ms   ratio {ratio:.3f}")


def _calibrated(folder: Path, vectors: FloatArray, labels: int) -> HybridClassifier:
    """A classifier of an index of these vectors, calibrated, with all heads and scores taking part."""
    contract = EncoderContract("fake", "", "", "", "", vectors.shape[1], "float32")
    records = Records.of(
        Record(f"{i % labels:03d}/{i}.jpg", f"{i % labels:03d}", f"{i:064x}") for i in range(len(vectors))
    )
    write_npz(folder / "index.npz", contract, vectors, records)
    import_npz(folder / "index.npz", folder / "index", BuildOptions())
    classifier = HybridClassifier(
        PipelineConfig(
            encoder=ModelSpec("fake"),
            retrieval={"index_path": folder / "index", "top_k": K},
            rerank={"enabled": False},
        )
    )
    started = time.perf_counter()
    calibration, _ = calibrate(classifier, score="combination")
    print(f"calibrating: {time.perf_counter() - started:.1f} s")
    stored = required(read_calibration(folder / "index"))
    head = HeadSettings(dict.fromkeys(HEADS, 0.5), K, 0.07)
    ones = (0.1,) * len(SCORES)
    novelty = Combination(tuple(SCORES), (0.0,) * len(SCORES), (1.0,) * len(SCORES), ones, 0.0)
    changed = replace(stored.decider, settings=head, combination=novelty)
    write_calibration(folder / "index", replace(calibration, head=head, novelty=novelty), changed, ())
    return classifier


def _calls(classifier: HybridClassifier, asked: FloatArray) -> dict[str, Callable[[], object]]:
    _, retrieve, vote, open_set = classifier.pipeline.steps
    index = open_index(retrieve.index)  # type: ignore[attr-defined]
    fitted = required(read_calibration(retrieve.index))  # type: ignore[attr-defined]
    found = index.search(asked, K)
    queries = Queries((asked,), found.similarity, index.records.codes[found.rows].astype(np.int64))
    image = Image.new("RGB", (8, 8))
    key = index.encoder.fingerprint
    near = retrieve.run(
        [
            replace(Sample.from_image(str(i), image), embeddings=read_only({key: row[None]}))
            for i, row in enumerate(asked)
        ]
    )

    def decide() -> None:
        decided = fitted.decider.decide(queries)
        scores = Scores(index.labels, decided.probabilities, decided.known.astype(np.float32))
        route(scores, fitted.calibration.gates)

    return {
        "search": lambda: index.search(asked, K),
        "heads, novelty, gates": decide,
        "the steps": lambda: open_set.run(vote.run(near)),
    }


def _around(centres: FloatArray, n: int, rng: np.random.Generator) -> FloatArray:
    """So many unit vectors, around the centres in turn."""
    vectors = centres[np.arange(n) % len(centres)] + rng.normal(size=(n, centres.shape[1]))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def _milliseconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - started)


if __name__ == "__main__":
    main()
