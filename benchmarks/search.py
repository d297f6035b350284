"""Search through our API against the raw FAISS call, in one run.

    python benchmarks/search.py [--rows 20000] [--dim 1152] [--rounds 15]

Prints, per batch size, the median milliseconds of both and the median of the ratios pair by pair: the two
take turns, so that a drift of the machine's speed hits both. `search` is what the retrieve step calls;
`search + labels` also looks up the label and path of every neighbour.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import faiss
import numpy as np

from lmm_classifier.index.search import VectorIndex, flat_index
from lmm_classifier.index.shards import Record
from lmm_classifier.types import EncoderContract, FloatArray

K = 20
LABELS = 100


def main() -> None:
    """Time, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=1152)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    faiss.omp_set_num_threads(2)
    vectors = _unit(options.rows, options.dim, seed=0)
    contract = EncoderContract("random", "", "", "", "", options.dim, "float32")
    records = [Record(f"{i % LABELS}/{i}.jpg", str(i % LABELS), "") for i in range(options.rows)]
    index = VectorIndex(contract, records, flat_index(vectors), "benchmark")
    raw = flat_index(vectors)
    print(f"{options.rows} x {options.dim}, k = {K}, {options.rounds} rounds, median ms")
    print(f"{'queries':>8} {'faiss':>9} {'search':>9} {'ratio':>7} {'search + labels':>16} {'ratio':>7}")
    for n in (1, 16, 256, 1024):
        queries = _unit(n, options.dim, seed=n)

        def described(queries: FloatArray = queries) -> None:
            found = index.search(queries, K)
            for i in range(len(queries)):
                index.describe(found.similarity[i : i + 1], found.rows[i : i + 1])

        calls: list[Callable[[], object]] = [
            lambda queries=queries: raw.search(queries, K),
            lambda queries=queries: index.search(queries, K),
            described,
        ]
        times = [[_milliseconds(call) for call in calls] for _ in range(options.rounds + 1)][1:]
        faiss_ms, search_ms, labels_ms = (median(column) for column in zip(*times, strict=True))
        search_ratio = median(row[1] / row[0] for row in times)
        labels_ratio = median(row[2] / row[0] for row in times)
        print(f"{n:>8} {faiss_ms:>9.2f} {search_ms:>9.2f} {search_ratio:>7.3f}", end=" ")
        print(f"{labels_ms:>16.2f} {labels_ratio:>7.3f}")


def _milliseconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - started)


def _unit(rows: int, dim: int, seed: int) -> FloatArray:
    vectors = np.random.default_rng(seed).standard_normal((rows, dim), dtype=np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


if __name__ == "__main__":
    main()
