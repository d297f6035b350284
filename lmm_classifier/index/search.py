"""Opening an index and searching it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np

from lmm_classifier.errors import ConfigError, EncoderMismatchError, IndexFolderError
from lmm_classifier.index.engine import (
    ApproximateSearch,
    ExactSearch,
    Filtering,
    Found,
    Search,
    Subset,
    read_engine,
)
from lmm_classifier.index.manifest import EXACT, EXACTLY, MANIFEST, Manifest, OperatingPoint, read_manifest
from lmm_classifier.index.npz import read_npz
from lmm_classifier.index.records import Records
from lmm_classifier.index.shards import map_vectors, read_records, vector_files, verify_vectors
from lmm_classifier.index.vectors import Vectors
from lmm_classifier.storage.atomic_files import is_single_file, verify
from lmm_classifier.types import EncoderContract, FloatArray, IntArray, Neighbours

_VERIFIERS = 2  # threads that compute digests while the vectors are loaded
log = logging.getLogger(__name__)


class VectorIndex:
    """Labelled unit vectors of one encoder, searched by cosine similarity.

    Attributes:
        encoder: contract of the encoder that made the vectors.
        records: n records, in row order.
        labels: the distinct labels, sorted.
        vectors: the n vectors.
        operating_point: how they are searched.
    """

    def __init__(
        self,
        encoder: EncoderContract,
        records: Records,
        vectors: Vectors,
        name: str,
        search: Search | None = None,
        operating_point: OperatingPoint = EXACTLY,
    ) -> None:
        if len(vectors) != len(records) or vectors.dim != encoder.dim:
            raise IndexFolderError(
                f"{name} is inconsistent: {len(vectors)} vectors of dimension {vectors.dim} for "
                f"{len(records)} records of dimension {encoder.dim}; rebuild the index"
            )
        self.encoder = encoder
        self.operating_point = operating_point
        self.records = records
        self.labels = records.labels
        self.vectors = vectors
        self._name = name
        self._search = search or ExactSearch(vectors)
        self._subsets: dict[tuple[str, ...], Search] = {}

    def __len__(self) -> int:
        return len(self.records)

    def search(self, queries: FloatArray, k: int, labels: tuple[str, ...] | None = None) -> Found:
        """Find the k most similar vectors of each query.

        Args:
            queries: float32 (n, d), unit rows, made by this index's encoder.
            k: clipped to the number of vectors.
            labels: only vectors with these labels, compared exactly; None means all. Rows short of k
                are padded.

        Raises:
            EncoderMismatchError: queries of another dimension.
            ConfigError: the index has none of the labels.
        """
        if queries.ndim != 2 or queries.shape[1] != self.encoder.dim:
            raise EncoderMismatchError(f"queries must be (n, {self.encoder.dim}), got {queries.shape}")
        if not np.isfinite(queries).all():
            raise EncoderMismatchError("queries hold numbers that are not finite: the encoder failed")
        k = min(k, len(self))
        if labels is None or set(self.labels) <= set(labels):
            found = self._search.search(queries, k)
        else:
            found = self._subset(labels).search(queries, k)
        return Found(found.similarity.clip(-1, 1), found.rows)  # rounding goes past 1

    def describe(self, similarity: FloatArray, rows: IntArray) -> Neighbours:
        """Add labels and paths to rows (r, k) that a search found."""
        found = rows >= 0
        ends = np.cumsum(found.sum(axis=1)).tolist()
        near = rows[found]  # all of them at once: it is asked for every photo
        labels = [self.labels[code] for code in self.records.codes[near].tolist()]
        paths = self.records.paths(near)
        spans = list(zip([0, *ends], ends, strict=False))
        return Neighbours(
            similarity=similarity,
            rows=rows,
            labels=tuple(tuple(labels[start:end]) for start, end in spans),
            paths=tuple(tuple(paths[start:end]) for start, end in spans),
        )

    def vectors_of(self, embeddings: Mapping[str, FloatArray]) -> FloatArray:
        """The embeddings that this index can be searched by.

        Raises:
            EncoderMismatchError: none of them was made by its encoder.
        """
        if self.encoder.fingerprint not in embeddings:
            raise _foreign(self._name, (self.encoder,), embeddings)
        return embeddings[self.encoder.fingerprint]

    def _subset(self, labels: tuple[str, ...]) -> Search:
        if labels not in self._subsets:
            rows = self.records.rows_of(labels)
            if not rows.size:
                raise ConfigError(
                    f"{self._name} has no image with one of the labels {', '.join(labels)}; "
                    f"it has {', '.join(self.labels)}"
                )
            if isinstance(self._search, Filtering):
                self._subsets[labels] = self._search.among(np.unique(self.records.codes[rows]).tolist())
            else:
                self._subsets[labels] = Subset(self.vectors, rows)
        return self._subsets[labels]


def describe_encoder(contract: EncoderContract) -> str:
    """One line that lets a person find the encoder again."""
    weights = f" {contract.weights}" if contract.weights else ""
    kind = f"{contract.dim} dimensions, {contract.dtype}, fingerprint {contract.fingerprint}"
    return f"{contract.name}{weights} ({kind})"


class Backend(Protocol):
    """What searches the vectors of an index folder. Hashable: equal ones share an opened index."""

    def open(self, folder: Path, manifest: Manifest, number: int, vectors: Vectors) -> Search:
        """The search of one space, ready to use.

        Raises:
            ConfigError, IndexFolderError: it cannot be used, or does not hold this state of the index.
        """
        ...


@dataclass(frozen=True, slots=True)
class Faiss:
    """In this process: exactly, or by the FAISS structure that was built with the index."""

    def open(self, folder: Path, manifest: Manifest, number: int, vectors: Vectors) -> Search:
        if manifest.spaces[number].search.factory == EXACT:
            return ExactSearch(vectors)
        return _approximate(folder, manifest, number, vectors)


FAISS = Faiss()


def open_index(path: Path, encoder: EncoderContract | None = None, backend: Backend = FAISS) -> VectorIndex:
    """Open an index folder, or an .npz file, verifying every file that is used.

    The opened index is kept, and opened anew when the file on disk has been replaced.

    Args:
        path: the index.
        encoder: which of the index's encoders is to be searched by; the first if left out.
        backend: what searches it.

    Raises:
        ConfigError: the backend cannot be used, or not for a single file.
        IndexFolderError: missing, damaged or inconsistent; the message names the file.
        EncoderMismatchError: the encoder made none of its vectors; says what differs.
    """
    opened = _opened(path)
    if encoder is None:
        return opened.space(0, backend)
    if encoder.fingerprint not in opened.fingerprints:
        raise _differing(path, encoder, opened.encoders)
    return opened.space(opened.fingerprints.index(encoder.fingerprint), backend)


def open_matching(path: Path, embeddings: Collection[str], backend: Backend = FAISS) -> VectorIndex:
    """As `open_index`, for the first of the index's encoders whose embeddings are there.

    Args:
        path: the index.
        embeddings: fingerprints of the encoders that have seen the query.
        backend: what searches it.

    Raises:
        ConfigError, IndexFolderError: as `open_index`.
        EncoderMismatchError: none of them made vectors of the index.
    """
    opened = _opened(path)
    for number, fingerprint in enumerate(opened.fingerprints):
        if fingerprint in embeddings:
            return opened.space(number, backend)
    raise _foreign(str(path), opened.encoders, embeddings)


def encoders_of(path: Path) -> tuple[EncoderContract, ...]:
    """The contracts of the encoders that made an index, the default first.

    Raises:
        IndexFolderError: as `open_index`.
    """
    return _opened(path).encoders


def the_encoder(path: Path, name: str) -> EncoderContract:
    """The contract of the index's encoder of that family, or of its only one if the name is "".

    Raises:
        ConfigError: there is none, or several and none is named.
        IndexFolderError: as `open_index`.
    """
    encoders = encoders_of(path)
    chosen = [contract for contract in encoders if name in ("", contract.name)]
    if len(chosen) != 1:
        raise ConfigError(
            f"{path} has the encoders {', '.join(contract.name for contract in encoders)}; choose one"
        )
    return chosen[0]


class _Opened:
    """An index whose records are read and whose spaces are opened when somebody searches them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._spaces: dict[tuple[int, Backend], VectorIndex] = {}
        self._lock = threading.Lock()
        if is_single_file(path):
            contract, vectors, records = read_npz(path)
            self.encoders: tuple[EncoderContract, ...] = (contract,)
            self._records = records
            self._spaces[0, FAISS] = VectorIndex(
                contract, records, Vectors([vectors], contract.dim), str(path)
            )
        else:
            self._manifest = read_manifest(path)
            self.encoders = self._manifest.encoders
            self._records = read_records(path, self._manifest.files)
            _check_counts(path, self._manifest, self._records)
        self.fingerprints = [encoder.fingerprint for encoder in self.encoders]

    def space(self, number: int, backend: Backend) -> VectorIndex:
        if is_single_file(self._path) and backend != FAISS:
            raise ConfigError(
                f"{self._path} is a single file, searched in this process only; make a folder of it"
            )
        key = number, backend
        with self._lock:
            if key not in self._spaces:
                self._spaces[key] = open_space(self._path, self._manifest, self._records, number, backend)
            return self._spaces[key]


def open_space(
    path: Path, manifest: Manifest, records: Records, number: int, backend: Backend = FAISS
) -> VectorIndex:
    """Load one space of an index folder while other threads verify its files.

    Raises:
        IndexFolderError: as `open_index`.
    """
    space = manifest.spaces[number]
    vectors = map_vectors(path, manifest.files, space.encoder.dim, number)
    with ThreadPoolExecutor(_VERIFIERS, thread_name_prefix="verify") as pool:
        pending = [
            pool.submit(verify_vectors, path, name, manifest.files[name])
            for name in vector_files(manifest.files, number)
        ]
        search = backend.open(path, manifest, number, vectors)
        index = VectorIndex(space.encoder, records, vectors, str(path), search, space.search)
        for check in pending:
            check.result()
    log.info("opened index %s: %d images, %d labels", path, manifest.count, len(manifest.labels))
    return index


def engine_file(number: int) -> str:
    """Name of the FAISS file of a space that is not searched exactly."""
    return f"index.{number}.faiss" if number else "index.faiss"


def _approximate(path: Path, manifest: Manifest, number: int, vectors: Vectors) -> ApproximateSearch:
    name, point = engine_file(number), manifest.spaces[number].search
    if name not in manifest.files:
        raise IndexFolderError(f"{path / MANIFEST} does not list {name}; rebuild the index")
    verify(path, name, manifest.files[name])  # before FAISS reads it
    engine = read_engine(path / name, point)
    if engine.ntotal != len(vectors) or engine.d != vectors.dim:
        raise IndexFolderError(
            f"{path / name} holds {engine.ntotal} vectors of dimension {engine.d}, the shards {len(vectors)} "
            f"of {vectors.dim}; rebuild the index"
        )
    return ApproximateSearch(engine, vectors, point.refine)


def _check_counts(path: Path, manifest: Manifest, records: Records) -> None:
    rows = {
        number: sum(manifest.files[name].rows for name in vector_files(manifest.files, number))
        for number in range(len(manifest.spaces))
    }
    if any(n != len(records) for n in (manifest.count, *rows.values())):
        raise IndexFolderError(
            f"{path / MANIFEST} counts {manifest.count} images, the shards hold {len(records)} records and "
            f"{', '.join(map(str, rows.values()))} vectors; rebuild the index"
        )
    if records.counts() != manifest.labels:
        raise IndexFolderError(
            f"{path / MANIFEST} counts other labels than the shards hold; rebuild the index"
        )


_lock = threading.Lock()


def _opened(path: Path) -> _Opened:
    marker = path if is_single_file(path) else path / MANIFEST
    try:
        status = marker.stat()
    except OSError as error:
        raise IndexFolderError(
            f"{path} is not an index ({marker.name}: {error.strerror}); build one with `index build`"
        ) from error
    with _lock:
        return _cached(path.resolve(), status.st_mtime_ns, status.st_ino)


@lru_cache(maxsize=4)
def _cached(path: Path, _changed_ns: int, _inode: int) -> _Opened:
    return _Opened(path)


def _foreign(
    name: str, encoders: Collection[EncoderContract], made_by: Collection[str]
) -> EncoderMismatchError:
    return EncoderMismatchError(
        f"{name} was built by encoder {' and '.join(map(describe_encoder, encoders))}, the query by "
        f"{', '.join(sorted(made_by)) or 'none'}; set `encoder` to match, or rebuild the index"
    )


def _differing(
    path: Path, encoder: EncoderContract, encoders: Collection[EncoderContract]
) -> EncoderMismatchError:
    fields = ("name", "weights", "weights_digest", "preprocessing", "dim", "dtype")
    differing, nearest = min(
        (([f for f in fields if getattr(encoder, f) != getattr(other, f)], other) for other in encoders),
        key=lambda pair: len(pair[0]),
    )
    setting = f"`encoder.dtype: {nearest.dtype}`" if differing == ["dtype"] else "`encoder` to match"
    return EncoderMismatchError(
        f"{path} was built by encoder {' and '.join(map(describe_encoder, encoders))}, the settings give "
        f"{describe_encoder(encoder)}; they differ in {', '.join(differing)}: set {setting}, "
        "or rebuild the index"
    )
