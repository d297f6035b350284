"""Opening an index and searching it."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import faiss
import numpy as np

from lmm_classifier.errors import ConfigError, EncoderMismatchError, IndexFolderError
from lmm_classifier.index.files import is_single_file, read_verified
from lmm_classifier.index.manifest import MANIFEST, Manifest, read_manifest
from lmm_classifier.index.npz import read_npz
from lmm_classifier.index.shards import Record, map_vectors, read_records
from lmm_classifier.types import EncoderContract, FloatArray, IntArray, Neighbours

FAISS_FILE = "index.faiss"
FAISS_BYTE_LIMIT = 1 << 38  # 256 GiB: refuse a header that asks for more before allocating


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Rows of an index, best first: similarity float32 (n, k) and rows int64 (n, k), -1 as padding."""

    similarity: FloatArray
    rows: IntArray


class VectorIndex:
    """Labelled unit vectors, searched exactly by cosine similarity.

    Attributes:
        encoder: contract of the encoder that made the vectors.
        records: n records, in row order.
        labels: the distinct labels, sorted.
    """

    def __init__(
        self, encoder: EncoderContract, records: Sequence[Record], engine: faiss.Index, name: str
    ) -> None:
        if not engine.ntotal == len(records) or engine.d != encoder.dim:
            raise IndexFolderError(
                f"{name} is inconsistent: {engine.ntotal} vectors of dimension {engine.d} for {len(records)} "
                f"records of dimension {encoder.dim}; rebuild the index"
            )
        self.encoder = encoder
        self.records = tuple(records)
        self.labels = tuple(sorted({record.label for record in records}))
        self._name = name
        self._engine = engine
        self._selections: dict[tuple[str, ...], faiss.SearchParameters] = {}

    def __len__(self) -> int:
        return len(self.records)

    def search(self, queries: FloatArray, k: int, labels: tuple[str, ...] | None = None) -> Found:
        """Find the k most similar vectors of each query.

        Args:
            queries: float32 (n, d), unit rows, made by this index's encoder.
            k: clipped to the number of vectors.
            labels: only vectors with these labels; None means all. Rows short of k are padded.

        Raises:
            EncoderMismatchError: queries of another dimension.
            ConfigError: the index has none of the labels.
        """
        if queries.ndim != 2 or queries.shape[1] != self.encoder.dim:
            raise EncoderMismatchError(f"queries must be (n, {self.encoder.dim}), got {queries.shape}")
        if not np.isfinite(queries).all():
            raise EncoderMismatchError("queries hold numbers that are not finite: the encoder failed")
        selection = None if labels is None else self._selection(labels)
        similarity, rows = self._engine.search(queries, min(k, len(self)), params=selection)
        similarity = np.where(rows < 0, np.float32(0), similarity.clip(-1, 1))  # rounding goes past 1
        return Found(similarity, rows)

    def describe(self, similarity: FloatArray, rows: IntArray) -> Neighbours:
        """Add labels and paths to rows (r, k) that a search found."""
        near = [[self.records[j] for j in row if j >= 0] for row in rows.tolist()]
        return Neighbours(
            similarity=similarity,
            rows=rows,
            labels=tuple(tuple(record.label for record in row) for row in near),
            paths=tuple(tuple(record.path for record in row) for row in near),
        )

    def vectors_of(self, embeddings: Mapping[str, FloatArray]) -> FloatArray:
        """The embeddings that this index can be searched by.

        Raises:
            EncoderMismatchError: none of them was made by its encoder.
        """
        if self.encoder.fingerprint not in embeddings:
            raise EncoderMismatchError(
                f"{self._name} was built by encoder {describe_encoder(self.encoder)}, the query by "
                f"{', '.join(sorted(embeddings)) or 'none'}; set `encoder` to match, or rebuild the index"
            )
        return embeddings[self.encoder.fingerprint]

    def refuse_other(self, encoder: EncoderContract) -> None:
        """Raise EncoderMismatchError, saying what differs, unless this encoder made the vectors."""
        if encoder.fingerprint == self.encoder.fingerprint:
            return
        fields = ("name", "weights", "weights_digest", "preprocessing", "dim", "dtype")
        differing = [f for f in fields if getattr(encoder, f) != getattr(self.encoder, f)]
        raise EncoderMismatchError(
            f"{self._name} was built by encoder {describe_encoder(self.encoder)}, the settings give "
            f"{describe_encoder(encoder)}; they differ in {', '.join(differing)}: set `encoder` to match, "
            "or rebuild the index"
        )

    def _selection(self, labels: tuple[str, ...]) -> faiss.SearchParameters:
        if labels not in self._selections:
            wanted = set(labels)
            rows = np.asarray(
                [i for i, record in enumerate(self.records) if record.label in wanted], np.int64
            )
            if not rows.size:
                raise ConfigError(
                    f"{self._name} has no image with one of the labels {', '.join(labels)}; "
                    f"it has {', '.join(self.labels)}"
                )
            self._selections[labels] = faiss.SearchParameters(sel=faiss.IDSelectorBatch(rows))  # type: ignore[call-arg]
        return self._selections[labels]


def describe_encoder(contract: EncoderContract) -> str:
    """One line that lets a person find the encoder again."""
    weights = f" {contract.weights}" if contract.weights else ""
    kind = f"{contract.dim} dimensions, {contract.dtype}, fingerprint {contract.fingerprint}"
    return f"{contract.name}{weights} ({kind})"


def flat_index(vectors: FloatArray) -> faiss.IndexFlatIP:
    """An exact inner-product index over float32 (n, d); on unit rows that is cosine similarity."""
    engine = faiss.IndexFlatIP(vectors.shape[1])
    engine.add(vectors)
    return engine


log = logging.getLogger(__name__)
_lock = threading.Lock()


def open_index(path: Path) -> VectorIndex:
    """Open an index folder, or an .npz file, verifying every file it is made of.

    The opened index is kept, and opened anew when the file on disk has been replaced.

    Raises:
        IndexFolderError: missing, damaged or inconsistent; the message names the file.
    """
    marker = path if is_single_file(path) else path / MANIFEST
    try:
        status = marker.stat()
    except OSError as error:
        raise IndexFolderError(
            f"{path} is not an index ({marker.name}: {error.strerror}); build one with `index build`"
        ) from error
    with _lock:
        return _open(path.resolve(), status.st_mtime_ns, status.st_ino)


@lru_cache(maxsize=4)
def _open(path: Path, _changed_ns: int, _inode: int) -> VectorIndex:
    if is_single_file(path):
        contract, vectors, records = read_npz(path)
        return VectorIndex(contract, records, flat_index(vectors), str(path))
    manifest = read_manifest(path)
    records = read_records(path, manifest.files)
    n_vectors = sum(map(len, map_vectors(path, manifest.files, manifest.encoder.dim)))
    engine = _read_engine(path, manifest)
    if not manifest.count == len(records) == n_vectors:
        raise IndexFolderError(
            f"{path / MANIFEST} counts {manifest.count} images, the shards hold {len(records)} records and "
            f"{n_vectors} vectors; rebuild the index"
        )
    if Counter(record.label for record in records) != manifest.labels:
        raise IndexFolderError(
            f"{path / MANIFEST} counts other labels than the shards hold; rebuild the index"
        )
    log.info("opened index %s: %d images, %d labels", path, manifest.count, len(manifest.labels))
    return VectorIndex(manifest.encoder, records, engine, str(path))


def _read_engine(folder: Path, manifest: Manifest) -> faiss.Index:
    record = manifest.files.get(FAISS_FILE)
    if record is None:
        raise IndexFolderError(f"{folder / MANIFEST} does not list {FAISS_FILE}; rebuild the index")
    content = read_verified(folder, FAISS_FILE, record)
    faiss.set_deserialization_vector_byte_limit(FAISS_BYTE_LIMIT)
    try:
        return faiss.deserialize_index(np.frombuffer(content, np.uint8))
    except RuntimeError as error:
        raise IndexFolderError(f"{folder / FAISS_FILE} is not a FAISS index; rebuild the index") from error
