"""How vectors are searched: exactly, or by a FAISS structure that was measured against exact search."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import faiss
import numpy as np
import numpy.typing as npt

from lmm_classifier.errors import ConfigError, IndexFolderError
from lmm_classifier.index.manifest import EXACT, OperatingPoint
from lmm_classifier.index.vectors import Vectors
from lmm_classifier.types import FloatArray, IntArray

_FLAT_LIMIT = 300_000
"""Vectors up to which every one is compared: no training, no misses, and thresholds stay valid."""
_SCALAR_LIMIT = 10_000_000
"""Vectors up to which a byte per dimension is affordable; beyond, product quantisation."""
TARGET_RECALL = 0.99
K = 20
QUERIES = 1_000
"""Held out while the structure is tuned: a standard error of about .001 at recall .99 and k = 20."""
_TRAINING_PER_LIST = 64
"""FAISS asks for at least 39 vectors per centroid of an inverted file, and uses at most 256."""
_REFINE = (4, 16, 64)
"""Candidates per neighbour that are compared with their exact vectors: the first that suffices."""
_SMALLEST = 20
"""Vectors below which nothing can be held out, and nothing is gained either."""
LOOKED_UP = 64  # queries whose candidates' exact vectors are in memory at once
_FAISS_BYTE_LIMIT = 1 << 38  # 256 GiB: refuse a header that asks for more before allocating


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Rows of an index, best first: similarity float32 (n, k) and rows int64 (n, k), -1 as padding."""

    similarity: FloatArray
    rows: IntArray


class Search(Protocol):
    """A way to find the most similar vectors."""

    def search(self, queries: FloatArray, k: int) -> Found:
        """The k most similar vectors of unit queries (n, d); padded where there are fewer."""
        ...


@runtime_checkable
class Filtering(Search, Protocol):
    """A search that can be narrowed without comparing the vectors here."""

    def among(self, codes: Sequence[int]) -> Search:
        """The search among the vectors whose labels have these codes."""
        ...


class ExactSearch:
    """Every vector is compared. On unit rows, inner product is cosine similarity."""

    def __init__(self, vectors: Vectors) -> None:
        self._flat = faiss.IndexFlatIP(vectors.dim)
        for part in vectors.parts:
            self._flat.add(np.asarray(part))

    def search(self, queries: FloatArray, k: int) -> Found:
        similarity, rows = self._flat.search(queries, k)
        return Found(np.where(rows < 0, np.float32(0), similarity), rows)


class Subset:
    """Exact search among some rows (m,) of the vectors."""

    def __init__(self, vectors: Vectors, rows: IntArray) -> None:
        self._exact = ExactSearch(Vectors([vectors.take(rows)], vectors.dim))
        self._rows = rows

    def search(self, queries: FloatArray, k: int) -> Found:
        found = self._exact.search(queries, k)
        return Found(found.similarity, np.where(found.rows < 0, -1, self._rows[found.rows]))


class ApproximateSearch:
    """A FAISS structure proposes candidates; their similarities are computed from the vectors themselves."""

    def __init__(self, engine: faiss.Index, vectors: Vectors, refine: int) -> None:
        self._engine = engine
        self._vectors = vectors
        self._refine = refine

    def search(self, queries: FloatArray, k: int) -> Found:
        _, candidates = self._engine.search(queries, min(k * self._refine, len(self._vectors)))
        groups = [slice(i, i + LOOKED_UP) for i in range(0, len(queries), LOOKED_UP)]
        return stacked([rescored(self._vectors, queries[g], candidates[g], k) for g in groups], k)


def rescored(vectors: Vectors, queries: FloatArray, candidates: IntArray, k: int) -> Found:
    """The k best candidates of each query by their exact vectors.

    Args:
        vectors: of the index.
        queries: float32 (n, d), unit rows.
        candidates: int64 (n, m), rows proposed for each query, m >= k; -1 pads.
        k: how many to keep.
    """
    n, m = candidates.shape
    proposed = vectors.take(candidates.clip(0).ravel()).reshape(n, m, -1)
    similarity = np.einsum("nd,nmd->nm", queries, proposed)
    similarity[candidates < 0] = -np.inf
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    similarity = np.take_along_axis(similarity, order, axis=1)
    rows = np.where(np.isinf(similarity), -1, np.take_along_axis(candidates, order, axis=1))
    return Found(np.where(rows < 0, np.float32(0), similarity), rows)


def stacked(parts: Sequence[Found], k: int) -> Found:
    """What was found for several groups of queries, as one."""
    return Found(
        np.concatenate([part.similarity for part in parts] or [np.empty((0, k), np.float32)]),
        np.concatenate([part.rows for part in parts] or [np.empty((0, k), np.int64)]),
    )


def factory_for(n: int, dim: int) -> str:
    """The FAISS factory string for n vectors of dimension `dim`.

    Inverted lists number about 4 * sqrt(n) (FAISS's guideline: 4 to 16), and are themselves found by a
    graph where they are many.
    """
    if n <= _FLAT_LIMIT:
        return EXACT
    lists = 2 ** round(np.log2(4 * np.sqrt(n)))
    coarse = f"IVF{lists}_HNSW32" if lists >= 1 << 14 else f"IVF{lists}"
    codes = [m for m in (256, 128, 96, 64, 48, 32, 16, 8) if dim % m == 0 and 4 * m <= dim]
    return f"{coarse},PQ{codes[0]}" if n > _SCALAR_LIMIT and codes else f"{coarse},SQ8"


def check_factory(factory: str, dim: int) -> None:
    """Refuse what FAISS does not understand before hours of encoding are spent on it.

    Raises:
        ConfigError: it cannot make this structure for vectors of dimension `dim`.
    """
    try:
        faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"FAISS cannot make {factory!r} for dimension {dim}: {_reason(error)}") from error


def tuned(
    vectors: Vectors, labels: npt.NDArray[np.int32], factory: str, target_recall: float = TARGET_RECALL
) -> tuple[faiss.Index, OperatingPoint]:
    """Build a FAISS structure, and choose the cheapest search parameters that find what exact search finds.

    Vectors held out of structure and training are the queries; afterwards they are added too.

    Args:
        vectors: n unit vectors.
        labels: int32 (n,), code of each one's label.
        factory: FAISS factory string other than "Flat".
        target_recall: asked of recall@20 minus two standard errors.

    Returns:
        the structure, its parameters set, and what was measured. Where no parameters reach the target,
        the most thorough ones; the operating point tells.

    Raises:
        ConfigError: FAISS cannot make this structure of these vectors.
    """
    n = len(vectors)
    held = np.zeros(n, bool)
    held[np.random.default_rng(0).choice(n, min(QUERIES, n // 10), replace=False)] = True
    rows = np.flatnonzero(held)
    queries = vectors.take(rows)
    k = min(K, n - len(rows))
    with _faiss_errors(factory, vectors):
        engine = _trained(vectors, factory, np.flatnonzero(~held))
        exact = _fill(engine, vectors, held, queries, k)
        point = _operating_point(engine, vectors, labels, factory, queries, exact, target_recall)
        engine.add_with_ids(queries, rows)
    return engine, point


def _trained(vectors: Vectors, factory: str, rows: IntArray) -> faiss.Index:
    engine = faiss.index_factory(vectors.dim, factory, faiss.METRIC_INNER_PRODUCT)
    if not isinstance(faiss.downcast_index(engine), faiss.IndexIVF):  # only these number vectors freely
        engine = faiss.index_factory(vectors.dim, f"IDMap,{factory}", faiss.METRIC_INNER_PRODUCT)
    if not engine.is_trained:
        lists = re.search(r"IVF(\d+)", factory)
        wanted = _TRAINING_PER_LIST * max(int(lists[1]) if lists else 0, 1024)
        chosen = np.random.default_rng(1).choice(rows, min(wanted, len(rows)), replace=False)
        engine.train(vectors.take(np.sort(chosen)))
    return engine


def _fill(
    engine: faiss.Index, vectors: Vectors, held: npt.NDArray[np.bool_], queries: FloatArray, k: int
) -> IntArray:
    """Add what is not held out; returns the exact k nearest of the queries among it, int64 (q, k)."""
    nearest = faiss.ResultHeap(len(queries), k, keep_max=True)
    start = 0
    for part in vectors.parts:
        rows = start + np.flatnonzero(~held[start : start + len(part)])
        start += len(part)
        if not len(rows):
            continue
        added = np.asarray(part)[rows - (start - len(part))]
        engine.add_with_ids(added, rows)
        similarity, place = faiss.knn(queries, added, min(k, len(rows)), metric=faiss.METRIC_INNER_PRODUCT)
        nearest.add_result(similarity, rows[place])
    nearest.finalize()
    found: IntArray = nearest.I
    return found


def _operating_point(
    engine: faiss.Index,
    vectors: Vectors,
    labels: npt.NDArray[np.int32],
    factory: str,
    queries: FloatArray,
    exact: IntArray,
    target_recall: float,
) -> OperatingPoint:
    point = OperatingPoint(factory=factory)
    for parameters, refine in _ladder(factory):
        _set_parameters(engine, parameters)
        found = ApproximateSearch(engine, vectors, refine).search(queries, exact.shape[1]).rows
        recalls = np.asarray([np.isin(a, b).mean() for a, b in zip(exact, found, strict=True)])
        agreements = [_majority(labels[a]) == _majority(labels[b]) for a, b in zip(exact, found, strict=True)]
        point = OperatingPoint(
            factory=factory,
            parameters=parameters,
            refine=refine,
            k=exact.shape[1],
            queries=len(queries),
            recall=float(recalls.mean()),
            label_agreement=float(np.mean(agreements)),
        )
        if recalls.mean() - 2 * recalls.std() / np.sqrt(len(queries)) >= target_recall:
            break
    return point


def _set_parameters(engine: faiss.Index, parameters: str) -> None:
    """Set FAISS search parameters such as "nprobe=32"; "" sets none."""
    if parameters:
        faiss.ParameterSpace().set_index_parameters(engine, parameters)  # type: ignore[arg-type]


def _ladder(factory: str) -> Iterator[tuple[str, int]]:
    """Search parameters and refinement, from fast to thorough."""
    lists = re.search(r"IVF(\d+)", factory)
    if lists:
        steps = [f"nprobe={2**i}" for i in range(int(np.log2(int(lists[1]))) + 1)]
    elif re.search(r"HNSW|NSG", factory):
        steps = [f"efSearch={2**i}" for i in range(5, 12)]
    else:
        steps = [""]
    for refine in _REFINE:
        yield from ((step, refine) for step in steps)


def _majority(labels: npt.NDArray[np.int32]) -> int:
    return int(np.bincount(labels).argmax())


@contextmanager
def _faiss_errors(factory: str, vectors: Vectors) -> Iterator[None]:
    try:
        if len(vectors) < _SMALLEST:
            raise ValueError(f"at least {_SMALLEST} are needed")
        yield
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ConfigError(
            f"FAISS cannot make {factory!r} of {len(vectors)} vectors of dimension {vectors.dim}: "
            f"{_reason(error)}"
        ) from error


def _reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rpartition("Error: ")[2]


def write_engine(path: Path, engine: faiss.Index) -> None:
    """Write a FAISS structure.

    Raises:
        IndexFolderError: the disk refuses.
    """
    try:
        faiss.write_index(engine, str(path))
    except RuntimeError as error:
        reason = re.search(r"\((.*)\)\s*$", str(error))
        raise IndexFolderError(f"cannot write {path}: {reason[1] if reason else error}") from error


def read_engine(path: Path, point: OperatingPoint) -> faiss.Index:
    """Map a verified FAISS file from disk, its search parameters set.

    Raises:
        IndexFolderError: it is no FAISS structure, or not the one that was measured.
    """
    faiss.set_deserialization_vector_byte_limit(_FAISS_BYTE_LIMIT)
    try:
        engine = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        _set_parameters(engine, point.parameters)
    except RuntimeError as error:
        raise IndexFolderError(f"{path} is not a FAISS index; rebuild the index") from error
    return engine
