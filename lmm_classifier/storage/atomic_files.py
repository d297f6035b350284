"""Files that are either wholly there or not at all, with the digests that prove it later."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lmm_classifier.errors import IndexFolderError

_NAME_BYTES = 240  # of a file's name that its temporary one repeats: with the rest, fewer than the usual 255


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What a manifest says of a file: SHA-256 in hex, size in bytes, number of records."""

    sha256: str
    size: int
    rows: int


def is_single_file(index: Path) -> bool:
    """Whether an index path means the documented single file, `.npz`, and not a folder."""
    return index.suffix.lower() == ".npz"


def replace_file(path: Path, content: bytes, rows: int = 0) -> FileRecord:
    """Put a file in place of an older one; a crash leaves the one or the other, never a mix.

    Raises:
        IndexFolderError: it cannot be written there.
    """
    with _taking_the_place_of(path) as temporary:
        temporary.write_bytes(content)
    return FileRecord(hashlib.sha256(content).hexdigest(), len(content), rows)


def replace_large_file(path: Path, write: Callable[[Path], None], rows: int) -> FileRecord:
    """As `replace_file`, for what a library writes itself and is too large to hold twice.

    Args:
        path: the file.
        write: writes the content to the path it is given.
        rows: number of records in it.

    Raises:
        IndexFolderError: it cannot be written there.
    """
    with _taking_the_place_of(path) as temporary:
        write(temporary)
        size, sha256 = _digest(temporary)
    return FileRecord(sha256, size, rows)


@contextmanager
def _taking_the_place_of(path: Path) -> Iterator[Path]:
    """A path to write; what is there at the end is on the disk before it gets its name."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        start = os.fsencode(path.name)[:_NAME_BYTES].decode(errors="ignore")
        temporary = path.with_name(f".{start}.{secrets.token_hex(4)}.tmp")
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def read_verified(folder: Path, name: str, record: FileRecord) -> bytes:
    """Read a file once and check that it is, byte for byte, the one its manifest speaks of.

    Raises:
        IndexFolderError: missing, of another size, or changed; the message names the file.
    """
    path = folder / name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error
    _compare(path, len(content), hashlib.sha256(content).hexdigest(), record)
    return content


def verify(folder: Path, name: str, record: FileRecord) -> None:
    """As `read_verified`, without keeping the content: for files that are too large for that.

    Raises:
        IndexFolderError: as `read_verified`.
    """
    path = folder / name
    try:
        size, digest = _digest(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    _compare(path, size, digest, record)


def check_size(folder: Path, name: str, record: FileRecord) -> None:
    """Check at the cost of a look that a file is there and as long as its manifest says.

    Raises:
        IndexFolderError: missing, or of another size; the message names the file.
    """
    path = folder / name
    try:
        size = path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from error
    _compare(path, size, record.sha256, record)


def _digest(path: Path) -> tuple[int, str]:
    """Size in bytes and SHA-256 of a file."""
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()


def _unreadable(path: Path, error: OSError) -> IndexFolderError:
    remedy = "check its permissions" if isinstance(error, PermissionError) else "rebuild the index"
    return IndexFolderError(f"{path}: {error.strerror}; {remedy}")


def _compare(path: Path, size: int, digest: str, record: FileRecord) -> None:
    if size != record.size:
        raise IndexFolderError(f"{path} has {size} bytes instead of {record.size}; rebuild the index")
    if digest != record.sha256:
        raise IndexFolderError(
            f"{path} is damaged: its SHA-256 differs from the manifest's; rebuild the index"
        )


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot sync a folder
            raise
    finally:
        os.close(descriptor)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Say in one line what the disk refused."""
    try:
        yield
    except OSError as error:
        raise IndexFolderError(f"cannot write {path}: {error.strerror or error}") from error
