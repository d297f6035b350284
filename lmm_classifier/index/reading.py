"""Files of a corpus on their way to the encoders: looked at, and decoded if they are new."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lmm_classifier.corpus.images import ImageLimits, open_image, read_image_bytes
from lmm_classifier.errors import ImageError
from lmm_classifier.index.existing import ExistingIndex, ReusedRows, Stat, Task

QUEUED_PER_WORKER = 8  # decoded images in memory: enough that neither threads nor model wait for the other


@dataclass(frozen=True, slots=True)
class ImageReading:
    """How photos are read.

    Attributes:
        root: what relative paths start from.
        limits: what a photo may be.
        target_size: px that the shorter side is scaled down to later; None needs every pixel.
        workers: threads that read and decode.
    """

    root: Path
    limits: ImageLimits
    target_size: int | None
    workers: int


@dataclass(frozen=True, slots=True, eq=False)
class ReadImages:
    """What became of one file. Exactly one of `error`, `known_row` and `image` is set.

    Attributes:
        task: path and label.
        stat: size in bytes and modification time in ns, from before the file was read; None if missing.
        sha256: of the very bytes that were decoded.
        error: why it cannot be indexed.
        known_row: row of the previous index that holds the vectors of the same bytes.
        image: the decoded image, still to be encoded.
    """

    task: Task
    stat: Stat
    sha256: str = ""
    error: ImageError | None = None
    known_row: int | None = None
    image: Image.Image | None = None


def read_image(task: Task, reading: ImageReading, existing: ExistingIndex) -> ReadImages:
    """Look at one file; decode it only if the previous index does not know its content."""
    if isinstance(task, ReusedRows):
        return ReadImages(task, existing.stat_of(task.row), task.sha256, known_row=task.row)
    path = reading.root / task.path
    stat = stat_of(path)
    if stat and (row := existing.row_of_unchanged(task.path, stat)) is not None:
        return ReadImages(task, stat, existing.sha256[row], known_row=row)
    try:
        content = read_image_bytes(path, reading.limits)
        sha256 = hashlib.sha256(content).hexdigest()
        if (row := existing.row_by_content.get(sha256)) is not None:
            return ReadImages(task, stat, sha256, known_row=row)
        image = open_image(content, target_size=reading.target_size, limits=reading.limits)
        return ReadImages(task, stat, sha256, image=image)
    except ImageError as error:
        return ReadImages(task, stat, error=error)


def stat_now(task: Task, root: Path, existing: ExistingIndex) -> Stat:
    """What `read_image` would note as the task's stat at this moment."""
    return existing.stat_of(task.row) if isinstance(task, ReusedRows) else stat_of(root / task.path)


def stat_of(path: Path) -> Stat:
    """Size in bytes and modification time in ns; None where there is nothing to look at."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns
