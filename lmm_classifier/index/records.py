"""What an index knows of each image: path, label and content digest, kept column by column."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

# Names are bytes on disk and need not be UTF-8, so they are stored as bytes.
SCHEMA = pa.schema([("path", pa.binary()), ("label", pa.binary()), ("sha256", pa.string())])
_LARGE = pa.schema([("path", pa.large_binary()), ("label", pa.large_binary()), ("sha256", pa.large_string())])


@dataclass(frozen=True, slots=True)
class Record:
    """One indexed image: path relative to the corpus root, label, SHA-256 of the file's bytes."""

    path: str
    label: str
    sha256: str


class Records:
    """n records. Held as columns, because a million objects would take gigabytes and seconds to make.

    Attributes:
        labels: the c distinct labels, sorted.
        codes: int32 (n,), position of each record's label in `labels`.
    """

    labels: tuple[str, ...]
    codes: npt.NDArray[np.int32]

    def __init__(self, table: pa.Table) -> None:
        columns = table.cast(_LARGE).combine_chunks()
        self._paths, label, self._sha256 = (_one_chunk(columns[name]) for name in SCHEMA.names)
        encoded = pc.dictionary_encode(label)
        seen = [os.fsdecode(value) for value in encoded.dictionary.to_pylist()]
        self.labels = tuple(sorted(seen))
        place = {name: code for code, name in enumerate(self.labels)}
        renumber = np.asarray([place[name] for name in seen], np.int32)
        self.codes = renumber[encoded.indices.to_numpy()] if seen else np.empty(0, np.int32)
        self.codes.setflags(write=False)

    @classmethod
    def of(cls, records: Iterable[Record]) -> Records:
        """The same records as columns."""
        return cls(as_table(records))

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, row: int) -> Record:
        return Record(
            os.fsdecode(self._paths[row].as_py()),
            self.labels[self.codes[row]],
            self._sha256[row].as_py(),
        )

    def __iter__(self) -> Iterator[Record]:
        for path, code, sha256 in zip(self.paths(), self.codes.tolist(), self.sha256(), strict=True):
            yield Record(path, self.labels[code], sha256)

    def paths(self, rows: npt.NDArray[np.int64] | None = None) -> list[str]:
        """Paths of some rows (m,), or of all."""
        column = self._paths if rows is None else self._paths.take(pa.array(rows))
        return [os.fsdecode(path) for path in column.to_pylist()]

    def sha256(self) -> list[str]:
        """Digests of all rows."""
        digests: list[str] = self._sha256.to_pylist()
        return digests

    def contents(self) -> npt.NDArray[np.int64]:
        """int64 (n,): two records have the same number when their files are the same byte for byte."""
        numbers: dict[str, int] = {}
        return np.asarray([numbers.setdefault(digest, len(numbers)) for digest in self.sha256()], np.int64)

    def counts(self) -> dict[str, int]:
        """Label -> number of its records, sorted by label."""
        numbers = np.bincount(self.codes, minlength=len(self.labels)).tolist()
        return dict(zip(self.labels, numbers, strict=True))

    def rows_of(self, labels: Iterable[str]) -> npt.NDArray[np.int64]:
        """Rows of the records with one of these labels, ascending."""
        wanted = set(labels)
        mask = np.asarray([label in wanted for label in self.labels], bool)
        return np.flatnonzero(mask[self.codes]).astype(np.int64)


def as_table(records: Iterable[Record]) -> pa.Table:
    """Records as the table of a shard's .parquet file."""
    records = tuple(records)
    columns = {
        "path": [os.fsencode(record.path) for record in records],
        "label": [os.fsencode(record.label) for record in records],
        "sha256": [record.sha256 for record in records],
    }
    return pa.table(columns, schema=SCHEMA)


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)
