"""What an index that is already there saves a build from doing again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from lmm_classifier.corpus.corpus import CorpusItem
from lmm_classifier.errors import EncoderMismatchError, IndexFolderError
from lmm_classifier.index.manifest import MANIFEST, read_manifest
from lmm_classifier.index.records import Records
from lmm_classifier.index.shards import map_vectors, read_records, vector_files, verify_vectors
from lmm_classifier.index.vectors import Vectors
from lmm_classifier.types import EncoderContract, FloatArray, IntArray

_STATS = "file-stats.npy"
Stat = tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class ReusedRows:
    """An image that stays in the index as it is, whatever has become of its file."""

    path: str
    label: str
    sha256: str
    row: int


Task = CorpusItem | ReusedRows


class ExistingIndex:
    """The vectors of an index, found by path or by content.

    Attributes:
        records: n records of the index; none where there was no index.
        sha256: their digests.
        row_by_content: SHA-256 of a file's bytes -> row.
        folder: where `open_existing` found it; None where there was no index folder.
    """

    def __init__(
        self,
        records: Records,
        spaces: Sequence[Vectors],
        stats: IntArray | None,
        folder: Path | None = None,
    ) -> None:
        self.records = records
        self.folder = folder
        self._spaces = tuple(spaces)
        self._stats = stats

    @cached_property
    def sha256(self) -> list[str]:
        return self.records.sha256()

    @cached_property
    def row_by_content(self) -> Mapping[str, int]:
        return {digest: row for row, digest in enumerate(self.sha256)}

    @cached_property
    def _row_by_path(self) -> Mapping[str, int]:
        return {path: row for row, path in enumerate(self.records.paths())}

    def row_of_unchanged(self, path: str, stat: tuple[int, int]) -> int | None:
        """The row of a file whose size and modification time are those it was indexed with."""
        row = self._row_by_path.get(path)
        return row if row is not None and self.stat_of(row) == stat else None

    def stat_of(self, row: int) -> Stat:
        """Size and time that a row's file had when it was read; None where nobody knows."""
        if self._stats is None:
            return None
        size, time = self._stats[row].tolist()
        return (size, time) if size >= 0 else None

    def vectors(self, space: int, rows: IntArray) -> FloatArray:
        """float32 (m, d) of the rows (m,)."""
        return self._spaces[space].take(rows)


NOTHING = ExistingIndex(Records.of(()), (), None)


def open_existing(folder: Path, encoders: Sequence[EncoderContract]) -> ExistingIndex:
    """What the index in `folder` holds; nothing where there is none.

    Raises:
        EncoderMismatchError: it was built by other encoders.
        IndexFolderError: it is damaged.
    """
    if not (folder / MANIFEST).is_file():
        return NOTHING
    try:
        manifest = read_manifest(folder)
        wanted = [encoder.fingerprint for encoder in encoders]
        if manifest.fingerprints != wanted:
            names = ", ".join(encoder.name for encoder in manifest.encoders)
            raise EncoderMismatchError(
                f"{folder} was built by encoder {names} with fingerprint {', '.join(manifest.fingerprints)}, "
                f"this one has {', '.join(wanted)}; --rebuild replaces it"
            )
        records = read_records(folder, manifest.files)
        spaces = []
        for number, encoder in enumerate(encoders):
            spaces.append(map_vectors(folder, manifest.files, encoder.dim, number))
            for name in vector_files(manifest.files, number):
                verify_vectors(folder, name, manifest.files[name])
    except EncoderMismatchError:
        raise
    except IndexFolderError as error:
        raise IndexFolderError(f"{error} with --rebuild") from error
    return ExistingIndex(records, spaces, _read_stats(folder, len(records)), folder)


def write_stats(folder: Path, stats: Sequence[Stat]) -> None:
    """Keep size and time of each indexed file, int64 (n, 2). A cache: it need not survive a crash."""
    known = [stat or (-1, -1) for stat in stats]
    with (folder / _STATS).open("wb") as file:
        np.save(file, np.asarray(known, np.int64).reshape(-1, 2), allow_pickle=False)


def _read_stats(folder: Path, rows: int) -> IntArray | None:
    try:
        stats = np.load(folder / _STATS, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return stats if stats.shape == (rows, 2) and stats.dtype == np.int64 else None
