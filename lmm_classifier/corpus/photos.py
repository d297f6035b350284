"""Photos that need no label: those of a folder, or of a table."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lmm_classifier.corpus.corpus import NO_PHOTOS
from lmm_classifier.corpus.folder import list_images
from lmm_classifier.corpus.table import TABLE_SUFFIXES, read_paths


@dataclass(frozen=True, slots=True)
class Photos:
    """Photos, not opened yet.

    Attributes:
        root: what relative paths start from.
        paths: of the photos, and of what cannot be looked at though it may be one.
        left_out: how many files are no photos by their name or kind.
    """

    root: Path
    paths: tuple[str, ...]
    left_out: int


def list_photos(source: str | os.PathLike[str]) -> Photos:
    """All photos below a folder, by the rules of `list_images`; or of a table with a column `path`.

    Raises:
        CorpusError: the source is missing, unreadable or wrong inside.
    """
    source = Path(source)
    if source.suffix.lower() in TABLE_SUFFIXES and not source.is_dir():
        return Photos(source.parent, read_paths(source), 0)
    images, skipped = list_images(source)
    refused = [entry.path for entry in skipped if entry.code not in NO_PHOTOS]
    return Photos(source, (*images, *refused), len(skipped) - len(refused))
