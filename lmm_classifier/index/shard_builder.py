"""One shard: photos in, vectors and records out. Touches no index, so any machine can do it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from lmm_classifier.corpus.corpus import SkippedFile
from lmm_classifier.errors import ModelError
from lmm_classifier.index.existing import ExistingIndex, Stat, Task
from lmm_classifier.index.reading import QUEUED_PER_WORKER, ImageReading, ReadImages, read_image
from lmm_classifier.index.records import Record
from lmm_classifier.storage.prefetch import prefetch_map
from lmm_classifier.types import EncoderContract, FloatArray

OnTaken = Callable[[bool], None]


class MakesVectors(Protocol):
    """What a build asks of an encoder."""

    @property
    def contract(self) -> EncoderContract:
        """Everything that decides the vectors."""
        ...

    def encode(self, images: Sequence[Image.Image]) -> FloatArray:
        """RGB images to float32 (n, d), unit rows."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class BuiltShard:
    """A shard, not written yet.

    Attributes:
        vectors: per encoder, float32 (n, d).
        records: n records.
        stats: size and time of each task's file, in the tasks' order.
        indexed: which tasks have a row, in row order.
        failures: the others, and why.
        encoded: how many of the n images were encoded; the rest came from the former index.
    """

    vectors: tuple[FloatArray, ...]
    records: tuple[Record, ...]
    stats: tuple[Stat, ...]
    indexed: tuple[int, ...]
    failures: tuple[SkippedFile, ...]
    encoded: int


@dataclass(frozen=True, slots=True)
class Work:
    """What all shards of a build have in common.

    Attributes:
        reading: how photos are read.
        encoders: what makes the vectors, one space each.
        previous: whose vectors are taken over where the bytes are the same.
        batch_size: images per model call.
    """

    reading: ImageReading
    encoders: Sequence[MakesVectors]
    existing: ExistingIndex
    batch_size: int


def make_shard(tasks: Sequence[Task], work: Work, on_taken: OnTaken) -> BuiltShard:
    """Decode each photo once and let every encoder see it.

    Args:
        tasks: what the shard is made of.
        work: how.
        on_taken: called after each task with whether it got a row.

    Raises:
        ModelError: an encoder failed or broke its contract.
    """
    rows = _Rows(work.encoders, len(tasks), work.batch_size)
    records: list[Record] = []
    indexed: list[int] = []
    known: list[tuple[int, int]] = []
    failures: list[SkippedFile] = []
    stats: list[Stat] = []
    for position, taken in enumerate(_taken(tasks, work.reading, work.existing)):
        stats.append(taken.stat)
        if taken.error is not None:
            failures.append(SkippedFile(taken.task.path, taken.error.code, taken.error.reason))
        else:
            if taken.known_row is not None:
                known.append((len(records), taken.known_row))
            elif taken.image is not None:
                rows.add(len(records), taken.image)
            records.append(Record(taken.task.path, taken.task.label, taken.sha256))
            indexed.append(position)
        on_taken(taken.error is None)
    rows.flush()
    if known:
        here, there = np.asarray(known, np.int64).T
        for space, vectors in enumerate(rows.vectors):
            vectors[here] = work.existing.vectors(space, there)
    return BuiltShard(
        vectors=tuple(vectors[: len(records)] for vectors in rows.vectors),
        records=tuple(records),
        stats=tuple(stats),
        indexed=tuple(indexed),
        failures=tuple(failures),
        encoded=len(records) - len(known),
    )


def _taken(tasks: Sequence[Task], reading: ImageReading, existing: ExistingIndex) -> Iterator[ReadImages]:
    ahead = reading.workers * QUEUED_PER_WORKER
    return prefetch_map(lambda task: read_image(task, reading, existing), tasks, reading.workers, ahead)


class _Rows:
    """The vectors of a shard as they come, a full batch at a time."""

    def __init__(self, encoders: Sequence[MakesVectors], rows: int, batch_size: int) -> None:
        self.vectors = [np.empty((rows, encoder.contract.dim), np.float32) for encoder in encoders]
        self._encoders = encoders
        self._batch_size = batch_size
        self._waiting: list[tuple[int, Image.Image]] = []

    def add(self, row: int, image: Image.Image) -> None:
        self._waiting.append((row, image))
        if len(self._waiting) == self._batch_size:
            self.flush()

    def flush(self) -> None:
        if not self._waiting:
            return
        rows = [row for row, _ in self._waiting]
        images = [image for _, image in self._waiting]
        self._waiting = []
        for encoder, vectors in zip(self._encoders, self.vectors, strict=True):
            vectors[rows] = encoded(encoder, images)


def encoded(encoder: MakesVectors, images: Sequence[Image.Image]) -> FloatArray:
    """Encode images, checking the encoder against its contract: float32 (n, d), unit rows.

    Raises:
        ModelError: it failed, or gave something else.
    """
    found = encoder.encode(images)
    expected = (len(images), encoder.contract.dim)
    if found.shape != expected or not np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-3):
        raise ModelError(
            f"encoder {encoder.contract.name!r} must return unit rows {expected}, got {found.shape}"
        )
    return found
