"""What an index that is already there saves a build from doing again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lmm_classifier.errors import EncoderMismatchError, IndexFolderError
from lmm_classifier.index.manifest import MANIFEST, read_manifest
from lmm_classifier.index.shards import Record, map_vectors, read_records
from lmm_classifier.types import EncoderContract, FloatArray, IntArray

STATS = "file-stats.npy"


class Previous:
    """The vectors of an index, found by path or by content.

    Attributes:
        records: n records of the index; none where there was no index.
        row_by_content: SHA-256 of a file's bytes -> row.
    """

    def __init__(
        self, records: tuple[Record, ...], parts: tuple[FloatArray, ...], stats: IntArray | None
    ) -> None:
        self.records = records
        self.row_by_content: Mapping[str, int] = {record.sha256: i for i, record in enumerate(records)}
        self._row_by_path = {record.path: i for i, record in enumerate(records)}
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])
        self._stats = stats

    def row_of_unchanged(self, path: str, stat: tuple[int, int]) -> int | None:
        """The row of a file whose size and modification time are those it was indexed with."""
        row = self._row_by_path.get(path)
        if row is None or self._stats is None or tuple(self._stats[row].tolist()) != stat:
            return None
        return row

    def vector(self, row: int) -> FloatArray:
        """float32 (d,)."""
        part = int(np.searchsorted(self._ends, row, side="right"))
        start = int(self._ends[part - 1]) if part else 0
        vector: FloatArray = self._parts[part][row - start]
        return vector


NOTHING = Previous((), (), None)


def open_previous(folder: Path, encoder: EncoderContract) -> Previous:
    """What the index in `folder` holds; nothing where there is none.

    Raises:
        EncoderMismatchError: it was built by another encoder.
        IndexFolderError: it is damaged.
    """
    if not (folder / MANIFEST).is_file():
        return NOTHING
    try:
        manifest = read_manifest(folder)
        if manifest.encoder.fingerprint != encoder.fingerprint:
            raise EncoderMismatchError(
                f"{folder} was built by encoder {manifest.encoder.name} with fingerprint "
                f"{manifest.encoder.fingerprint}, this one has {encoder.fingerprint}; --rebuild replaces it"
            )
        records = read_records(folder, manifest.files)
        parts = map_vectors(folder, manifest.files, encoder.dim)
    except EncoderMismatchError:
        raise
    except IndexFolderError as error:
        raise IndexFolderError(f"{error} with --rebuild") from error
    return Previous(records, parts, _read_stats(folder, len(records)))


def _read_stats(folder: Path, rows: int) -> IntArray | None:
    """Size and time of each indexed file, int64 (n, 2). A cache: without it, contents are compared."""
    try:
        stats = np.load(folder / STATS, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return stats if stats.shape == (rows, 2) and stats.dtype == np.int64 else None
