"""A labelling run on disk: shards as it grows, one table at the end.

runs/NAME/
run.json           what was asked, of what, by which index and encoders; once finished, the counts
shards/            rows and vectors as they came; NUMBER is that of a shard's first photo
NUMBER.parquet   its rows; written after its vectors, so that a shard without it is none
NUMBER.npy       float32 (m, d), vectors of those that could be read; NUMBER.1.npy of a second encoder
results.parquet    all rows, once finished; also results.csv and results.jsonl where asked for
report.html        what there is to see
proposals.json     groups of unknowns, by `label propose`
decisions/         one log per reviewer, by `review`
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lmm_classifier.errors import IndexFolderError, RunError
from lmm_classifier.index.shards import save_vectors, vector_files
from lmm_classifier.labelling.run_manifest import REMEDY, read_run_manifest
from lmm_classifier.labelling.run_schema import SCHEMA, Row, path_of, row_of
from lmm_classifier.storage.atomic_files import (
    FileRecord,
    read_verified,
    replace_file,
    replace_large_file,
    verify,
)
from lmm_classifier.types import FloatArray, IntArray

SHARDS, RESULTS = "shards", "results.parquet"
_VECTORS = b"lmm_classifier.vectors"  # key in a shard's metadata: its files of vectors, as JSON


def write_shard(folder: Path, start: int, rows: pa.Table, vectors: Sequence[FloatArray]) -> None:
    """Append a shard: its vectors, then the rows that vouch for them.

    Args:
        folder: of the run.
        start: number of its first photo.
        rows: of its photos, of SCHEMA.
        vectors: per encoder, float32 (m, d) of the m photos that could be read.

    Raises:
        IndexFolderError: it cannot be written.
    """
    files = {}
    for space, found in enumerate(vectors):
        name = f"{SHARDS}/{start:09d}{f'.{space}' if space else ''}.npy"
        record = replace_large_file(folder / name, partial(save_vectors, found), len(found))
        files[name] = asdict(record)
    table = rows.replace_schema_metadata({_VECTORS: json.dumps(files)})
    parquet = io.BytesIO()
    pq.write_table(table, parquet, compression="zstd", write_page_checksum=True)
    replace_file(folder / f"{SHARDS}/{start:09d}.parquet", parquet.getvalue())


class LabellingRun:
    """A run as far as it has come; what is appended later is not seen.

    Attributes:
        folder: of the run.
        facts: what it says of itself.
        root: folder that relative paths of its photos start from.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_run_manifest(folder)
        self.root = Path(self.manifest.root)
        self._shards = [*_in_a_row(folder)]
        self._starts = np.cumsum([0, *(shard.rows for shard in self._shards)])
        self._read = lru_cache(maxsize=4)(RunShard.table)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def columns(self, *names: str) -> pa.Table:
        """Some columns of SCHEMA, of all photos.

        Raises:
            RunError: a shard is missing or damaged.
        """
        empty = pa.schema([SCHEMA.field(name) for name in names]).empty_table()
        return pa.concat_tables([empty, *(shard.table(names) for shard in self._shards)])

    def row(self, number: int) -> Row:
        """What became of a photo; errors as `columns`."""
        shard = int(np.searchsorted(self._starts, number, side="right")) - 1
        return row_of(self._read(self._shards[shard]), number - int(self._starts[shard]))

    def rows(self, numbers: Iterable[int]) -> dict[int, Row]:
        """What became of some photos, by their numbers; each shard is read once. Errors as `columns`."""
        return {number: self.row(number) for number in sorted(set(numbers))}

    def tables(self) -> Iterator[pa.Table]:
        """All columns, shard by shard; errors as `columns`."""
        return (shard.table() for shard in self._shards)

    def readable(self) -> IntArray:
        """int64 (m,): numbers of the photos that have an answer, and a row of vectors."""
        errors = self.columns("error_code")["error_code"]
        return np.flatnonzero(errors.is_null().to_numpy()).astype(np.int64)

    def vectors(self, space: int = 0) -> FloatArray:
        """float32 (m, d), in memory: the vectors of an encoder, of the m readable photos.

        Read file by file: a long run has more of them than a process may have open.

        Raises:
            RunError: a file is missing or damaged.
        """
        files = {name: record for shard in self._shards for name, record in shard.files.items()}
        parts = [np.empty((0, self.manifest.encoders[space].dim), np.float32)]
        try:
            for name in vector_files(files, space):
                content = read_verified(self.folder, name, files[name])
                parts.append(np.load(io.BytesIO(content), allow_pickle=False))
            return np.concatenate(parts)
        except (IndexFolderError, ValueError) as error:
            raise RunError(f"{str(error).rpartition(';')[0] or error}; {REMEDY}") from error


def rows_in(folder: Path) -> int:
    """How many photos a run holds, up to the first shard that is damaged."""
    rows = 0
    with suppress(RunError):
        for shard in _in_a_row(folder):
            rows += shard.rows
    return rows


def keep_beginning(folder: Path, paths: Sequence[str], batch_size: int) -> int:
    """Forget every photo from the first one that is not in its place, or whose shard is damaged.

    Args:
        folder: of the run.
        paths: of all photos that there are to be, in order.
        batch_size: photos that go through the models together; what is left begins with a batch.

    Returns:
        how many are done.
    """
    kept = 0
    with suppress(RunError):  # a shard that is damaged ends what is kept, as a gap does
        for shard in _in_a_row(folder):
            end = kept + shard.rows
            ends_a_batch = end % batch_size == 0 or end == len(paths)
            if not ends_a_batch or shard.paths() != list(paths[kept:end]) or not shard.whole():
                break
            kept = end
    for path in (folder / SHARDS).glob("*"):
        number = path.name.partition(".")[0]
        if not number.isdigit() or int(number) >= kept:
            path.unlink()
    return kept


@dataclass(frozen=True, slots=True, eq=False)
class RunShard:
    """A part of a run.

    Attributes:
        path: of its .parquet file.
        rows: number of its photos.
        files: of vectors, with what they must be.
    """

    path: Path
    rows: int
    files: Mapping[str, FileRecord]

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Some columns, or all.

        Raises:
            RunError: the file is missing or damaged.
        """
        with _explained(self.path), pq.ParquetFile(self.path, page_checksum_verification=True) as file:
            # Threads would be pointless here, and theirs are now and then alive at exit: a crash.
            table = file.read(columns and list(columns), use_threads=False)
        return table.replace_schema_metadata(None)

    def paths(self) -> list[str]:
        """Of its photos, as the file system knows them."""
        return [path_of(found) for found in self.table(("path", "path_bytes")).to_pylist()]

    def whole(self) -> bool:
        """Whether every byte is as it was written."""
        try:
            self.table()
            for name, record in self.files.items():
                verify(self.path.parents[1], name, record)
        except (RunError, IndexFolderError):
            return False
        return True


def _in_a_row(folder: Path) -> Iterator[RunShard]:
    """The shards up to the first gap: what follows one is what a kill left of a longer run."""
    end = 0
    for path in sorted((folder / SHARDS).glob("*.parquet")):
        with _explained(path):
            about = pq.read_metadata(path)
            named = json.loads((about.metadata or {})[_VECTORS])
            files = {name: FileRecord(**record) for name, record in named.items()}
            shard = RunShard(path, about.num_rows, files)
        if int(path.stem) != end:
            return
        end += shard.rows
        yield shard


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is missing or damaged; {REMEDY}") from error
