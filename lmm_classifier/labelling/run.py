"""Unlabelled photos through a classifier, onto the disk as they come."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lmm_classifier.api.classification import summarise
from lmm_classifier.api.hybrid_classifier import HybridClassifier
from lmm_classifier.corpus.corpus import SkippedFile
from lmm_classifier.corpus.photos import Photos, list_photos
from lmm_classifier.errors import CorpusError
from lmm_classifier.labelling.report import REPORT
from lmm_classifier.labelling.run_manifest import (
    RUN,
    RunManifest,
    continued,
    manifest_of,
    refuse_changed,
    write_manifest,
)
from lmm_classifier.labelling.run_schema import Row, as_table
from lmm_classifier.labelling.run_store import RESULTS, LabellingRun, keep_beginning, rows_in, write_shard
from lmm_classifier.labelling.table_export import CSV, JSONL
from lmm_classifier.storage.exclusive_folder import exclusive_folder
from lmm_classifier.storage.progress import OnProgress, Progress, ignore_progress
from lmm_classifier.types import UNKNOWN, EncoderContract, FloatArray, Sample, required

_SHARD_ROWS = 1024
PACKED_ROWS = 256  # held as objects: the thousands of a whole shard keep Python's collector busy
_OF_A_FINISHED_RUN = (RESULTS, CSV, JSONL, REPORT)
_SHARD_SECONDS = 30.0  # what a kill costs at most, and a batch


@dataclass(frozen=True, slots=True)
class Labelled:
    """What a run did.

    Attributes:
        run: as far as it has come: to the end.
        before: photos that an earlier attempt had done.
        left_out: files that are no photos by their name or kind.
        forgotten: photos that had been done and were done again, for the list of photos is another.
    """

    run: LabellingRun
    before: int
    left_out: int
    forgotten: int

    @property
    def counts(self) -> Mapping[str, Any]:
        """How many photos there are of each kind, as `_counts_of` has them."""
        return required(self.run.manifest.counts)


def label_photos(
    source: Path,
    classifier: HybridClassifier,
    output: Path,
    *,
    restart: bool = False,
    shard_rows: int = _SHARD_ROWS,
    on_progress: OnProgress = ignore_progress,
) -> Labelled:
    """Classify all photos of a folder or table; go on where an attempt that was interrupted had come to.

    Args:
        source: a folder of photos, or a .csv or .jsonl table with a column `path`.
        classifier: what decides; its index must be a folder.
        output: folder of the run, made if missing.
        restart: begin anew, whatever is there.
        shard_rows: photos after which what is done is put on the disk; after _SHARD_SECONDS at the latest.
        on_progress: called after each photo.

    Raises:
        CorpusError: the source is missing or wrong, or there is no photo in it.
        RunError: the run there was made of something else, or is damaged; or the index has changed
            meanwhile.
        ConfigError: the output is something else or in use, or settings and index do not fit.
        IndexFolderError, ModelError: as their messages say.
    """
    photos = list_photos(source)
    if not photos.paths:
        raise CorpusError(f"there is no photo in {source}")
    classifier.load()
    manifest = manifest_of(source, photos, classifier)
    with exclusive_folder(output, RUN, "a labelling run"):
        manifest, done, before = _begun(
            output, manifest, photos.paths, classifier.pipeline.batch_size, restart
        )
        started = time.monotonic()
        _go_on(_PhotoStream(classifier, manifest, photos, on_progress), output, before, shard_rows)
        refuse_changed(manifest, output, classifier)
        run = LabellingRun(output)
        if manifest.counts is None:
            seconds = round(time.monotonic() - started, 3)
            write_manifest(output, replace(manifest, counts=_counts_of(run), seconds=seconds))
            run = LabellingRun(output)
    return Labelled(run, before, photos.left_out, done - before)


def _begun(
    output: Path, manifest: RunManifest, paths: Sequence[str], batch_size: int, restart: bool
) -> tuple[RunManifest, int, int]:
    """What the run is to say of itself, how many photos had been done, and how many of these still count."""
    if restart:  # first of all: what was answered otherwise must not be gone on with
        keep_beginning(output, (), batch_size)
    if restart or not (output / RUN).exists():
        write_manifest(output, manifest)
    else:
        manifest = continued(output, manifest)
    done = rows_in(output)
    before = keep_beginning(output, paths, batch_size)
    if manifest.counts is not None and manifest.counts["photos"] != before:
        manifest = replace(manifest, counts=None, seconds=None)
        write_manifest(output, manifest)
        for name in _OF_A_FINISHED_RUN:  # they would tell of photos that are not in it, or lack some
            (output / name).unlink(missing_ok=True)
    return manifest, done, before


def _counts_of(run: LabellingRun) -> dict[str, Any]:
    """How many photos there are: in all, and of each status, label, deciding stage and kind of error."""
    columns = run.columns("status", "label", "stage", "error_code", "degraded", "used_reranker")

    def counted(name: str) -> dict[str, int]:
        return dict(sorted(Counter(v for v in columns[name].to_pylist() if v is not None).items()))

    return {
        "photos": len(run),
        "status": counted("status"),
        "labels": counted("label"),
        "stages": counted("stage"),
        "errors": counted("error_code"),
        "degraded": len(columns) - columns["degraded"].null_count,
        "reranked": sum(columns["used_reranker"].drop_null().to_pylist()),
    }


@dataclass(slots=True)
class _Shard:
    """Rows on their way to the disk, and the vectors of those that have some, per encoder."""

    start: int
    spaces: int
    rows: list[Row] = field(default_factory=list)
    packed: list[pa.Table] = field(default_factory=list)
    vectors: list[list[FloatArray]] = field(init=False)
    begun: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.vectors = [[] for _ in range(self.spaces)]

    def __len__(self) -> int:
        return PACKED_ROWS * len(self.packed) + len(self.rows)

    def add(self, row: Row, vectors: Sequence[FloatArray]) -> None:
        self.rows.append(row)
        if len(self.rows) == PACKED_ROWS:
            self.packed.append(as_table(self.rows))
            self.rows = []
        for found, vector in zip(self.vectors, vectors, strict=False):  # of a bad file there is none
            found.append(vector)

    def due(self, shard_rows: int) -> bool:
        return len(self) >= shard_rows or time.monotonic() - self.begun > _SHARD_SECONDS

    def write(self, output: Path, encoders: tuple[EncoderContract, ...]) -> None:
        vectors = [
            np.stack(found) if found else np.empty((0, encoder.dim), np.float32)
            for found, encoder in zip(self.vectors, encoders, strict=True)
        ]
        write_shard(output, self.start, pa.concat_tables([*self.packed, as_table(self.rows)]), vectors)


@dataclass(slots=True)
class _PhotoStream:
    """Photos on their way through the classifier."""

    classifier: HybridClassifier
    manifest: RunManifest
    photos: Photos
    on_progress: OnProgress

    def rows(self, before: int) -> Generator[tuple[Row, list[FloatArray]], None, None]:
        """Of each photo that is left, its row and its vectors, (d,) per encoder; none where it has none."""
        keys = [encoder.fingerprint for encoder in self.manifest.encoders]
        paths, cut = self.photos.paths[before:], self.classifier.thresholds
        finished = self.classifier.pipeline.run_files(
            (self.photos.root / path for path in paths), self.classifier.limits
        )
        with closing(finished):
            unknown = skipped = 0
            for number, (path, item) in enumerate(zip(paths, finished, strict=True), start=before + 1):
                if isinstance(item, Sample) and item.skipped:
                    skipped += 1
                    error = SkippedFile(path, "not_answered", f"{item.skipped.reason} [{item.skipped.code}]")
                    yield Row(path, item.sha256, None, error), []
                elif isinstance(item, Sample):
                    answer = summarise(item, cut)
                    unknown += answer.label == UNKNOWN
                    yield Row(path, item.sha256, answer), [item.embeddings[key][0] for key in keys]
                else:
                    skipped += 1
                    yield Row(path, None, None, SkippedFile(path, item.code, item.reason)), []
                total = len(self.photos.paths)
                self.on_progress(Progress("labelling", number, total, skipped, before, unknown))


def _go_on(stream: _PhotoStream, output: Path, before: int, shard_rows: int) -> None:
    """Label what is left. Shards end where a batch does: what a batch holds depends on no interruption."""
    encoders, last = stream.manifest.encoders, len(stream.photos.paths)
    batch_size = stream.classifier.pipeline.batch_size
    shard = _Shard(before, len(encoders))
    with closing(stream.rows(before)) as rows:
        for number, (row, vectors) in enumerate(rows, start=before + 1):
            shard.add(row, vectors)
            if number == last or (shard.due(shard_rows) and number % batch_size == 0):
                refuse_changed(stream.manifest, output, stream.classifier)
                shard.write(output, encoders)
                shard = _Shard(number, len(encoders))
