"""Files that are either wholly there or not at all, with the digests that prove it later."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lmm_classifier.errors import IndexFolderError


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What a manifest says of a file: SHA-256 in hex, size in bytes, number of records."""

    sha256: str
    size: int
    rows: int


def write_durably(path: Path, content: bytes, rows: int = 0) -> FileRecord:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return FileRecord(hashlib.sha256(content).hexdigest(), len(content), rows)


def replace_file(path: Path, content: bytes) -> None:
    """Put a file in place of an older one; a crash leaves the one or the other, never a mix.

    Raises:
        IndexFolderError: it cannot be written there.
    """
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            write_durably(temporary, content)
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(target: Path, *, owned_by: str) -> Iterator[Path]:
    """Yield an empty folder beside `target` that takes its place when the block ends well.

    Whatever goes wrong in the block, Ctrl-C included, the folder is removed and the target untouched.

    Args:
        target: where the folder shall be.
        owned_by: file whose presence shows that a folder already there is one of ours; a folder with
            other content is never replaced.

    Raises:
        IndexFolderError: the target is something else, or the disk refuses.
    """
    if (
        target.exists()
        and not (target / owned_by).is_file()
        and (not target.is_dir() or any(target.iterdir()))
    ):
        raise IndexFolderError(f"{target} exists and is not an index folder; choose another output path")
    with _explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
        try:
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            for folder in (*(p for p in temporary.rglob("*") if p.is_dir()), temporary):
                _sync_folder(folder)
            _swap(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def read_verified(folder: Path, name: str, record: FileRecord) -> bytes:
    """Read a file once and check that it is, byte for byte, the one its manifest speaks of.

    Raises:
        IndexFolderError: missing, of another size, or changed; the message names the file.
    """
    path = folder / name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise IndexFolderError(f"{path}: {error.strerror}; rebuild the index") from error
    if len(content) != record.size:
        raise IndexFolderError(f"{path} has {len(content)} bytes instead of {record.size}; rebuild the index")
    if hashlib.sha256(content).hexdigest() != record.sha256:
        raise IndexFolderError(
            f"{path} is damaged: its SHA-256 differs from the manifest's; rebuild the index"
        )
    return content


def _swap(new: Path, target: Path) -> None:
    if not target.exists():
        new.rename(target)
    else:
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
        target.rename(old)  # an empty folder may be renamed over
        try:
            new.rename(target)
        except OSError:
            old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems cannot sync a folder
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise IndexFolderError(f"cannot write {path}: {error.strerror or error}") from error
