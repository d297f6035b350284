"""A shard: vectors in one .npy file and their records in a .parquet file of the same name."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lmm_classifier.corpus.corpus import SkippedFile
from lmm_classifier.errors import IndexFolderError
from lmm_classifier.index.files import FileRecord, read_verified, replace_file, verify
from lmm_classifier.types import FloatArray

SHARD_ROWS = 8192  # 36 MiB of vectors at d = 1152
FAILURES = "failures.jsonl"
FOLDER = "shards"


@dataclass(frozen=True, slots=True)
class Record:
    """One indexed image: path relative to the corpus root, label, SHA-256 of the file's bytes."""

    path: str
    label: str
    sha256: str


# Names are bytes on disk and need not be UTF-8, so they are stored as bytes.
_SCHEMA = pa.schema([("path", pa.binary()), ("label", pa.binary()), ("sha256", pa.string())])


def write_shard(
    folder: Path, number: int, vectors: FloatArray, records: Sequence[Record]
) -> dict[str, FileRecord]:
    """Write vectors (n, d) and their n records; returns the manifest's entries for the two files."""
    table = pa.table(
        {
            "path": [os.fsencode(record.path) for record in records],
            "label": [os.fsencode(record.label) for record in records],
            "sha256": [record.sha256 for record in records],
        },
        schema=_SCHEMA,
    )
    parquet = io.BytesIO()
    pq.write_table(table, parquet, compression="zstd")
    npy = io.BytesIO()
    np.lib.format.write_array(npy, vectors, allow_pickle=False)
    name = f"{FOLDER}/{number:06d}"
    contents = {f"{name}.npy": npy.getvalue(), f"{name}.parquet": parquet.getvalue()}
    return {name: replace_file(folder / name, content, len(records)) for name, content in contents.items()}


def map_vectors(folder: Path, files: Mapping[str, FileRecord], dim: int) -> tuple[FloatArray, ...]:
    """Vectors of each shard, float32 (rows, dim), verified and then mapped from disk instead of loaded.

    Raises:
        IndexFolderError: a file is damaged or of another shape.
    """
    parts = []
    for name in sorted(name for name in files if name.endswith(".npy")):
        verify(folder, name, files[name])
        try:
            part = np.load(folder / name, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise IndexFolderError(f"{folder / name} is not an array file; rebuild the index") from error
        if part.dtype != np.float32 or part.shape != (files[name].rows, dim):
            raise IndexFolderError(
                f"{folder / name} must hold float32 ({files[name].rows}, {dim}), "
                f"it holds {part.dtype} {part.shape}; rebuild the index"
            )
        parts.append(part)
    return tuple(parts)


def read_records(folder: Path, files: Mapping[str, FileRecord]) -> tuple[Record, ...]:
    """Records of all shards, in order.

    Raises:
        IndexFolderError: a file is damaged or has other columns or another number of rows.
    """
    records: list[Record] = []
    for name in sorted(name for name in files if name.endswith(".parquet")):
        content = read_verified(folder, name, files[name])
        try:
            # Threads would be pointless here, and theirs are now and then alive at exit: a crash.
            table = pq.read_table(io.BytesIO(content), schema=_SCHEMA, use_threads=False, pre_buffer=False)
        except (pa.ArrowException, OSError) as error:
            raise IndexFolderError(
                f"{folder / name} does not hold index records; rebuild the index"
            ) from error
        if table.num_rows != files[name].rows:
            raise IndexFolderError(
                f"{folder / name} holds {table.num_rows} records, not {files[name].rows}; rebuild the index"
            )
        columns = (table[column].to_pylist() for column in ("path", "label", "sha256"))
        records += (
            Record(os.fsdecode(path), os.fsdecode(label), sha256)
            for path, label, sha256 in zip(*columns, strict=True)
        )
    return tuple(records)


def read_failures(folder: Path, files: Mapping[str, FileRecord]) -> tuple[dict[str, str], ...]:
    """What `write_failures` wrote: path, code and reason of every file that was not indexed."""
    if FAILURES not in files:
        raise IndexFolderError(f"{folder}: the manifest does not list {FAILURES}; rebuild the index")
    return tuple(json.loads(line) for line in read_verified(folder, FAILURES, files[FAILURES]).splitlines())


def write_failures(folder: Path, skipped: Sequence[SkippedFile]) -> dict[str, FileRecord]:
    """Write failures.jsonl; returns its manifest entry."""
    lines = "".join(json.dumps(asdict(item)) + "\n" for item in skipped)
    return {FAILURES: replace_file(folder / FAILURES, lines.encode(), len(skipped))}
