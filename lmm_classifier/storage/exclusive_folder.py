"""A folder of results that one process at a time writes, and that holds nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lmm_classifier.errors import ConfigError
from lmm_classifier.storage.atomic_files import explained
from lmm_classifier.storage.locks import locked


@contextmanager
def exclusive_folder(output: Path, marker: str, what: str) -> Iterator[None]:
    """Make the folder, and keep others from writing it meanwhile.

    Args:
        output: the folder.
        marker: a file by which one that is in use for this already is known.
        what: is written, with its article.

    Raises:
        ConfigError: it is a file, holds something else, is in use, or cannot be written.
        IndexFolderError: it cannot be made.
    """
    if output.exists() and not output.is_dir():
        raise ConfigError(f"{output} is a file; give --output a folder")
    there = [path.name for path in output.iterdir()] if output.is_dir() else []
    if marker not in there and not all(name.startswith(".") for name in there):  # our lock, a temporary file
        raise ConfigError(f"{output} holds something else than {what}; give --output a new folder")
    with explained(output):
        output.mkdir(parents=True, exist_ok=True)
    in_use = f"{output} is in use by another {what.partition(' ')[2]}; wait, or give another --output"
    with locked(output / ".lock", ConfigError(in_use)):
        yield
