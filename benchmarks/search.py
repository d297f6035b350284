"""Search through our API against raw FAISS, loading with and without digests; ratios from one run.

    python benchmarks/search.py [--rows 20000] [--dim 1152] [--rounds 15]
    python benchmarks/search.py --approximate [--rows 1000000] [--dim 256] [--noise 0.75]
        [--factory IVF4096,SQ8]

The first compares exact search, per batch size, with the raw FAISS call: median milliseconds of both and
the median of the ratios pair by pair (they take turns, so that a drift of the machine's speed hits both).
`search` is what the retrieve step calls; `search + labels` also looks up the label and path of every
neighbour. Then it opens the index from disk with and without verifying its files.

The second makes clustered vectors searchable, tuned as `index build` does, and compares the result with
exact search on queries that are not in the index: recall@20, and how much faster.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from unittest import mock

import faiss
import numpy as np

from lmm_classifier.index import search as opening
from lmm_classifier.index.build import BuildOptions
from lmm_classifier.index.engine import ApproximateSearch, factory_for, tuned
from lmm_classifier.index.manifest import EXACT, read_manifest
from lmm_classifier.index.npz import write_npz
from lmm_classifier.index.records import Record, Records
from lmm_classifier.index.search import VectorIndex
from lmm_classifier.index.shards import SHARD_ROWS, read_records
from lmm_classifier.index.update import import_npz
from lmm_classifier.index.vectors import Vectors
from lmm_classifier.types import EncoderContract, FloatArray

K = 20
LABELS = 100


def main() -> None:
    """Time, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--approximate", action="store_true")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--dim", type=int)
    parser.add_argument("--factory")
    parser.add_argument("--noise", type=float, default=0.75, help="norm of the noise around a centre")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    faiss.omp_set_num_threads(2)
    if options.approximate:
        approximate(options.rows or 1_000_000, options.dim or 256, options.factory, options.noise)
    else:
        exact(options.rows or 20_000, options.dim or 1152, options.rounds)


def exact(rows: int, dim: int, rounds: int) -> None:
    """Exact search and opening."""
    vectors = _unit(rows, dim, seed=0)
    contract = EncoderContract("random", "", "", "", "", dim, "float32")
    records = Records.of(Record(f"{i % LABELS}/{i}.jpg", str(i % LABELS), "") for i in range(rows))
    index = VectorIndex(contract, records, Vectors([vectors], dim), "benchmark")
    raw = faiss.IndexFlatIP(dim)
    raw.add(vectors)
    print(f"{rows} x {dim}, k = {K}, {rounds} rounds, median ms")
    print(f"{'queries':>8} {'faiss':>9} {'search':>9} {'ratio':>7} {'search + labels':>16} {'ratio':>7}")
    for n in (1, 16, 256, 1024):
        queries = _unit(n, dim, seed=n)

        def described(queries: FloatArray = queries) -> None:
            found = index.search(queries, K)
            for i in range(len(queries)):
                index.describe(found.similarity[i : i + 1], found.rows[i : i + 1])

        calls: list[Callable[[], object]] = [
            lambda queries=queries: raw.search(queries, K),
            lambda queries=queries: index.search(queries, K),
            described,
        ]
        times = [[_milliseconds(call) for call in calls] for _ in range(rounds + 1)][1:]
        faiss_ms, search_ms, labels_ms = (median(column) for column in zip(*times, strict=True))
        search_ratio = median(row[1] / row[0] for row in times)
        labels_ratio = median(row[2] / row[0] for row in times)
        print(f"{n:>8} {faiss_ms:>9.2f} {search_ms:>9.2f} {search_ratio:>7.3f}", end=" ")
        print(f"{labels_ms:>16.2f} {labels_ratio:>7.3f}")
    with tempfile.TemporaryDirectory() as folder:
        _loading(Path(folder), contract, vectors, records, rounds)


def _loading(
    folder: Path, contract: EncoderContract, vectors: FloatArray, records: Records, rounds: int
) -> None:
    write_npz(folder / "index.npz", contract, vectors, records)
    import_npz(folder / "index.npz", folder / "index", BuildOptions())
    manifest = read_manifest(folder / "index")

    def load() -> None:
        records = read_records(folder / "index", manifest.files)
        opening.open_space(folder / "index", manifest, records, 0)

    def unverified() -> None:
        with ExitStack() as stack:
            for name in ("verify_vectors", "verify"):
                stack.enter_context(mock.patch.object(opening, name))
            load()

    times = [[_milliseconds(unverified), _milliseconds(load)] for _ in range(rounds + 1)][1:]
    without, verified = (median(column) for column in zip(*times, strict=True))
    ratio = median(row[1] / row[0] for row in times)
    print(f"opening: {without:.1f} ms without digests of the vectors, {verified:.1f} ms with: {ratio:.3f}")


def approximate(rows: int, dim: int, factory: str | None, noise: float) -> None:
    """Recall and speed of the structure that is chosen by size."""
    held_out = 1000
    made = np.concatenate(list(_clustered(rows + held_out, dim, noise)))
    vectors, queries = made[:rows], made[rows:]
    parts = Vectors([vectors[i : i + SHARD_ROWS] for i in range(0, rows, SHARD_ROWS)], dim)
    factory = factory or factory_for(rows, dim)
    if factory == EXACT:
        print(f"{rows} vectors are searched exactly")
        return
    started = time.perf_counter()
    engine, point = tuned(parts, np.zeros(rows, np.int32), factory)
    seconds = time.perf_counter() - started
    size = faiss.serialize_index(engine).size / rows
    print(f"{rows} x {dim}, {factory}, {point.parameters}, refined x {point.refine}")
    print(f"built and tuned in {seconds:.0f} s, {size:.0f} bytes per vector beside the {4 * dim} stored")
    flat = faiss.IndexFlatIP(dim)
    flat.add(vectors)
    search = ApproximateSearch(engine, parts, point.refine)
    _, nearest = flat.search(queries, K)
    found = search.search(queries, K).rows
    recall = np.mean([np.isin(a, b).mean() for a, b in zip(nearest, found, strict=True)])
    print(f"recall@{K}: {point.recall:.4f} when tuned, {recall:.4f} on {held_out} other queries")
    print(f"{'queries':>8} {'exact ms':>9} {'ours ms':>9} {'faster':>7}")
    for n in (1, 16, 256, 1000):
        calls: list[Callable[[], object]] = [
            lambda some=queries[:n]: flat.search(some, K),
            lambda some=queries[:n]: search.search(some, K),
        ]
        times = [[_milliseconds(call) for call in calls] for _ in range(6)][1:]
        exact_ms, ours = (median(column) for column in zip(*times, strict=True))
        print(f"{n:>8} {exact_ms:>9.2f} {ours:>9.2f} {exact_ms / ours:>7.1f}")


def _clustered(rows: int, dim: int, spread: float) -> Iterator[FloatArray]:
    """Unit vectors around 10,000 centres; noise of .75 leaves a cosine of .8 to the own one, 1 of .7."""
    rng = np.random.default_rng(0)
    centres = _unit(10_000, dim, seed=1)
    for start in range(0, rows, 100_000):
        n = min(100_000, rows - start)
        noise = rng.standard_normal((n, dim), dtype=np.float32) * np.float32(spread / np.sqrt(dim))
        part = centres[rng.integers(len(centres), size=n)] + noise
        yield part / np.linalg.norm(part, axis=1, keepdims=True)


def _milliseconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - started)


def _unit(rows: int, dim: int, seed: int) -> FloatArray:
    vectors = np.random.default_rng(seed).standard_normal((rows, dim), dtype=np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


if __name__ == "__main__":
    main()
