"""Locks between processes: one file each, which is let go of also by a process that dies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from lmm_classifier.errors import LmmClassifierError

_POLL_S = 0.005  # between two tries: most holders need milliseconds


@contextmanager
def locked(path: Path, in_use: LmmClassifierError, patience: float = 0.0) -> Iterator[None]:
    """Hold a lock file, which no other process has meanwhile; its folder is made if missing.

    Args:
        path: of the lock file.
        in_use: what is raised where another process holds it, and in whose kind all else is told.
        patience: seconds that another process is waited for.

    Raises:
        LmmClassifierError: `in_use`; or of its kind, that the folder cannot be written.
    """
    lock = FileLock(path, poll_interval=_POLL_S)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=patience)
    except Timeout:
        raise in_use from None
    except OSError as error:
        raise type(in_use)(f"cannot write {path.parent}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()
