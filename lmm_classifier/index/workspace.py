"""Where a build grows, shard by shard, until it takes the place of the index: `.NAME.partial/` beside it.

    .NAME.partial/
      index/            the index to be: shards, then search structures, then the manifest
      journal/          one file per finished shard, written last: what it was made of and the digests
      old/              the former index, for the moment between two renames

A build that is killed leaves this folder; the next one takes over every shard whose journal entry, files
and source photos all still agree.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from lmm_classifier.corpus.corpus import SkippedFile
from lmm_classifier.errors import IndexFolderError
from lmm_classifier.index.existing import ReusedRows, Stat, Task
from lmm_classifier.index.manifest import MANIFEST
from lmm_classifier.storage.atomic_files import (
    FileRecord,
    explained,
    is_single_file,
    replace_file,
    sync_folder,
    verify,
)
from lmm_classifier.storage.locks import locked
from lmm_classifier.types import EncoderContract

_OWN_NAME = re.compile(
    r"manifest\.json|calibration\.json|calibration-[0-9a-f]{16}\.npz|failures\.jsonl|file-stats\.npy|latency\.json"
    r"|index(\.\d+)?\.faiss|shards/\d{6,}(\.\d+)?\.npy|shards/\d{6,}\.parquet"
)


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """A finished shard.

    Attributes:
        plan: digest of the encoders and of the tasks the shard was made of.
        files: its files in the index to be.
        stats: size and time of each task's file, in the tasks' order.
        indexed: which tasks have a row, in row order.
        failures: the others, and why.
        encoded: how many vectors were computed; the rest came from the former index.
    """

    plan: str
    files: dict[str, FileRecord]
    stats: tuple[Stat, ...]
    indexed: tuple[int, ...]
    failures: tuple[SkippedFile, ...]
    encoded: int


def plan_of(tasks: Sequence[Task], encoders: Sequence[EncoderContract]) -> str:
    """SHA-256 over the encoders and every path and label of a shard, and the content of what is kept."""
    made_of = [(t.path, t.label, t.sha256 if isinstance(t, ReusedRows) else "") for t in tasks]
    body = [[encoder.fingerprint for encoder in encoders], made_of]
    return hashlib.sha256(json.dumps(body).encode()).hexdigest()


class Workspace:
    """The growing index of one output. Use it within `locked_workspace`."""

    def __init__(self, output: Path) -> None:
        self.root = output.with_name(f".{output.name}.partial")
        self.index = self.root / "index"
        self._journal = self.root / "journal"
        self._old = self.root / "old"
        self._output = output

    def recover(self) -> None:
        """Put the former index back, if a build was killed between taking it away and publishing."""
        if self._old.is_dir() and not self._output.exists():
            self._old.rename(self._output)

    def clear(self) -> None:
        """Forget every shard, finished or not."""
        for folder in (self._journal, self.index, self._old):
            shutil.rmtree(folder, ignore_errors=True)

    @property
    def holds_shards(self) -> bool:
        """Whether there is something that a later build can go on with."""
        return self._journal.is_dir() and any(self._journal.glob("*.json"))

    def prepare(self) -> None:
        """Make the folders."""
        with explained(self._output):
            for folder in (self.index / "shards", self._journal):
                folder.mkdir(parents=True, exist_ok=True)

    def finished(self, number: int, plan: str) -> ShardEntry | None:
        """The entry of a shard that an earlier build finished by this plan, its files verified."""
        try:
            body = json.loads((self._journal / f"{number:06d}.json").read_bytes())
            entry = ShardEntry(
                plan=body["plan"],
                files={name: FileRecord(**record) for name, record in body["files"].items()},
                stats=tuple(None if stat is None else (stat[0], stat[1]) for stat in body["stats"]),
                indexed=tuple(body["indexed"]),
                failures=tuple(SkippedFile(**failure) for failure in body["failures"]),
                encoded=0,
            )
            if entry.plan != plan:
                return None
            for name, record in entry.files.items():
                verify(self.index, name, record)
        except (OSError, ValueError, KeyError, TypeError, IndexFolderError):
            return None
        return entry

    def finish(self, number: int, entry: ShardEntry) -> None:
        """Record a shard whose files are on the disk."""
        replace_file(self._journal / f"{number:06d}.json", json.dumps(asdict(entry)).encode())

    def keep_only(self, shards: int) -> None:
        """Remove shards of an earlier, longer plan, and what a kill left half-written."""
        for path in self.index.iterdir():
            if not path.is_dir():
                path.unlink()
        for path in (*(self.index / "shards").iterdir(), *self._journal.iterdir()):
            number = path.name.partition(".")[0]
            if not number.isdigit() or int(number) >= shards:
                path.unlink()

    def publish(self) -> None:
        """Put the finished index in the place of the former one."""
        with explained(self._output):
            for folder in (self.index / "shards", self.index):
                sync_folder(folder)
            shutil.rmtree(self._old, ignore_errors=True)
            if self._output.exists():
                self._output.rename(self._old)
            self.index.rename(self._output)
            sync_folder(self._output.parent)
            self.clear()


@contextmanager
def locked_workspace(output: Path) -> Iterator[Workspace]:
    """The workspace of an output, which no other process has meanwhile.

    Raises:
        IndexFolderError: another build is at it, the output is something else, or the disk refuses.
    """
    if is_single_file(output):
        if output.is_dir():
            raise IndexFolderError(f"{output} is a folder; an output ending in .npz is written as one file")
    elif output.exists() and not _may_be_replaced(output):
        raise IndexFolderError(f"{output} exists and is not an index folder; choose another output path")
    workspace = Workspace(output)
    in_use = IndexFolderError(f"another build is writing {output}; wait for it to end")
    with explained(output):
        workspace.root.mkdir(parents=True, exist_ok=True)
        try:
            with locked(workspace.root / "lock", in_use):
                workspace.recover()
                yield workspace
        finally:
            _discard_if_useless(workspace)


def _discard_if_useless(workspace: Workspace) -> None:
    """Remove a workspace without a finished shard, unless another build has just begun in it."""
    if workspace.holds_shards or not workspace.root.is_dir():
        return
    with suppress(IndexFolderError), locked(workspace.root / "lock", IndexFolderError("in use")):
        shutil.rmtree(workspace.root, ignore_errors=True)


def _may_be_replaced(folder: Path) -> bool:
    """Whether a folder holds nothing, or nothing but an index: what somebody else put there stays."""
    if not folder.is_dir():
        return False
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    if not names:
        return True
    if MANIFEST not in names or not all(_OWN_NAME.fullmatch(name) for name in names):
        return False
    try:
        return "schema_version" in json.loads((folder / MANIFEST).read_bytes())
    except (ValueError, TypeError):
        return True  # a damaged manifest among nothing but files of ours
