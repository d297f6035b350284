"""A shard: its records in a .parquet file, and the vectors of each encoder in one .npy file."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lmm_classifier.corpus.corpus import SkippedFile
from lmm_classifier.errors import IndexFolderError
from lmm_classifier.index.records import SCHEMA, Record, Records, as_table
from lmm_classifier.index.vectors import Vectors
from lmm_classifier.storage.atomic_files import (
    FileRecord,
    check_size,
    read_verified,
    replace_file,
    replace_large_file,
    verify,
)
from lmm_classifier.types import FloatArray

SHARD_ROWS = 2048
"""What a killed build does again at most, and holds in memory: 9 MiB of vectors at d = 1152."""
_FAILURES = "failures.jsonl"
_FOLDER = "shards"


def write_shard(
    folder: Path, number: int, vectors: Sequence[FloatArray], records: Sequence[Record]
) -> dict[str, FileRecord]:
    """Write n records and, per space, their vectors (n, d); returns the manifest's entries."""
    parquet = io.BytesIO()
    pq.write_table(as_table(records), parquet, compression="zstd")
    name = f"{_FOLDER}/{number:06d}.parquet"
    files = {name: replace_file(folder / name, parquet.getvalue(), len(records))}
    for space, rows in enumerate(vectors):
        name = f"{_FOLDER}/{number:06d}{_suffix(space)}"
        files[name] = replace_large_file(folder / name, partial(save_vectors, rows), len(records))
    return files


def save_vectors(vectors: FloatArray, path: Path) -> None:
    """Write vectors (n, d) as an .npy file, without pickle."""
    with path.open("wb") as file:
        np.lib.format.write_array(file, vectors, allow_pickle=False)


def vector_files(files: Mapping[str, FileRecord], space: int) -> list[str]:
    """Names of the files with the vectors of one space, in row order."""
    return sorted(name for name in files if name.partition(".")[2] == _suffix(space).removeprefix("."))


def _suffix(space: int) -> str:
    return f".{space}.npy" if space else ".npy"


def map_vectors(folder: Path, files: Mapping[str, FileRecord], dim: int, space: int = 0) -> Vectors:
    """Vectors of one space, mapped from disk instead of loaded. Their bytes are not verified here.

    Raises:
        IndexFolderError: a file is missing, of another size, or no array of this shape.
    """
    parts = []
    for name in vector_files(files, space):
        check_size(folder, name, files[name])
        parts.append(_mapped(folder / name, files[name], dim))
    return Vectors(parts, dim)


def _mapped(path: Path, record: FileRecord, dim: int) -> FloatArray:
    """The array of a file whose header must be the one `write_shard` wrote: a damaged one is not parsed."""
    header = io.BytesIO()
    layout = {"descr": "<f4", "fortran_order": False, "shape": (record.rows, dim)}
    np.lib.format.write_array_header_1_0(header, layout)
    start = header.tell()
    with path.open("rb") as file:
        fits = file.read(start) == header.getvalue() and record.size == start + 4 * record.rows * dim
    if not fits:
        raise IndexFolderError(
            f"{path} is damaged or of another encoder: it is not float32 ({record.rows}, {dim}); "
            "rebuild the index"
        )
    if not record.rows:
        return np.empty((0, dim), np.float32)
    return np.memmap(path, np.float32, "r", start, (record.rows, dim))


def verify_vectors(folder: Path, name: str, record: FileRecord) -> None:
    """Check that a file of vectors is the one its manifest speaks of, and holds only numbers.

    Raises:
        IndexFolderError: missing, changed, or with NaN or infinity; the message names the file.
    """
    verify(folder, name, record)
    # One number that is none makes the sum none: a tenth of the time of asking each.
    if not np.isfinite(np.load(folder / name, mmap_mode="r", allow_pickle=False).sum(dtype=np.float32)):
        raise IndexFolderError(f"{folder / name} holds vectors that are not finite; rebuild the index")


def read_records(folder: Path, files: Mapping[str, FileRecord]) -> Records:
    """Records of all shards, in order, verified.

    Raises:
        IndexFolderError: a file is damaged or has other columns or another number of rows.
    """
    tables = []
    for name in sorted(name for name in files if name.endswith(".parquet")):
        content = read_verified(folder, name, files[name])
        try:
            # Threads would be pointless here, and theirs are now and then alive at exit: a crash.
            table = pq.read_table(io.BytesIO(content), schema=SCHEMA, use_threads=False, pre_buffer=False)
        except (pa.ArrowException, OSError) as error:
            raise IndexFolderError(
                f"{folder / name} does not hold index records; rebuild the index"
            ) from error
        if table.num_rows != files[name].rows:
            raise IndexFolderError(
                f"{folder / name} holds {table.num_rows} records, not {files[name].rows}; rebuild the index"
            )
        tables.append(table)
    return Records(pa.concat_tables(tables) if tables else SCHEMA.empty_table())


def read_failures(folder: Path, files: Mapping[str, FileRecord]) -> tuple[SkippedFile, ...]:
    """What `write_failures` wrote: every file that was not indexed, and why.

    Raises:
        IndexFolderError: the file is missing or damaged.
    """
    if _FAILURES not in files:
        raise IndexFolderError(f"{folder}: the manifest does not list {_FAILURES}; rebuild the index")
    lines = read_verified(folder, _FAILURES, files[_FAILURES]).splitlines()
    return tuple(SkippedFile(**json.loads(line)) for line in lines)


def write_failures(folder: Path, skipped: Sequence[SkippedFile]) -> dict[str, FileRecord]:
    """Write failures.jsonl; returns its manifest entry."""
    lines = "".join(json.dumps(asdict(item)) + "\n" for item in skipped)
    return {_FAILURES: replace_file(folder / _FAILURES, lines.encode(), len(skipped))}
