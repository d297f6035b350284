"""A labelled corpus to an index on disk: decode, encode, write shard by shard, publish at the end."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import faiss
import numpy as np
from PIL import Image

from lmm_classifier.corpus.corpus import Corpus, CorpusItem, SkippedFile
from lmm_classifier.corpus.images import DEFAULT_LIMITS, ImageLimits
from lmm_classifier.errors import CorpusError, ModelError
from lmm_classifier.index.calibration import carry_calibration
from lmm_classifier.index.files import FileRecord, is_single_file, replace_file
from lmm_classifier.index.intake import Taken, in_order, stat_of, take
from lmm_classifier.index.manifest import MANIFEST, Manifest
from lmm_classifier.index.npz import write_npz
from lmm_classifier.index.previous import NOTHING, STATS, Previous, open_previous
from lmm_classifier.index.search import FAISS_FILE, flat_index
from lmm_classifier.index.shards import (
    SHARD_ROWS,
    Record,
    map_vectors,
    read_records,
    write_failures,
    write_shard,
)
from lmm_classifier.index.workspace import ShardEntry, Workspace, locked_workspace, plan_of
from lmm_classifier.types import EncoderContract, FloatArray

CALIBRATION_LOST = (
    "the thresholds were fitted for the former state of this index and are gone; calibrate again"
)
Encode = Callable[[Sequence[Image.Image]], FloatArray]
OnProgress = Callable[["Progress"], None]
OnStage = Callable[[str, "Progress | None"], None]


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a build stands: files looked at so far, of how many, and how many of them were skipped."""

    seen: int
    total: int
    skipped: int


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build did. Every file of the corpus is either indexed or in `skipped`.

    Attributes:
        output: the index.
        indexed: number of vectors in it.
        encoded: how many of them were computed now; the others were there already.
        labels: label -> number of its vectors.
        skipped: files that were not indexed, with code and reason.
        changed: paths of files that changed while the build ran; the index holds what was read.
        duplicates: images whose bytes an earlier image of the corpus has too.
        conflicts: groups of paths with the same bytes and different labels.
        warnings: one line each: what is odd about the corpus, though not fatal.
    """

    output: Path
    indexed: int
    encoded: int
    labels: dict[str, int]
    skipped: tuple[SkippedFile, ...]
    changed: tuple[str, ...]
    duplicates: int
    conflicts: tuple[tuple[str, ...], ...]
    warnings: tuple[str, ...]


def build_index(
    corpus: Corpus,
    encoder: EncoderContract,
    encode: Encode,
    output: Path,
    *,
    batch_size: int = 32,
    workers: int = 2,
    rebuild: bool = False,
    limits: ImageLimits = DEFAULT_LIMITS,
    on_progress: OnProgress | None = None,
) -> BuildReport:
    """Make an index hold exactly the readable images of a corpus.

    An index that is already there is synchronised: vectors of files that have not changed, or that hold
    the same bytes under another name, are taken over. The result is the same, byte for byte, as that of
    a build from nothing. A build that was interrupted goes on where it was, a shard at most redone.

    Args:
        corpus: what to index; images that cannot be read are skipped and reported.
        encoder: contract of the encoder.
        encode: its `encode`: n RGB images to float32 (n, d), unit rows.
        output: a path ending in `.npz` for the documented single file, anything else for the folder.
            An index already there is replaced at the very end, or not at all.
        batch_size: images per model call.
        workers: threads that read and decode.
        rebuild: start over, whatever is there.
        limits: what a photo may be.
        on_progress: called after each file.

    Raises:
        CorpusError: not one image could be read.
        ModelError: the encoder failed or broke its contract.
        IndexFolderError: the output cannot be written, is being written, or holds a damaged index.
        EncoderMismatchError: the index that is there was built by another encoder.
    """
    if batch_size < 1 or workers < 1:
        raise CorpusError(f"batch_size and workers must be at least 1, got {batch_size} and {workers}")
    with locked_workspace(output) as workspace:
        if rebuild:
            workspace.clear()
        fresh = rebuild or is_single_file(output)
        previous = NOTHING if fresh else open_previous(output, encoder)
        workspace.prepare()
        build = _Build(corpus, encoder, encode, workspace, previous, batch_size, workers, limits, on_progress)
        return _published(output, corpus, encoder, workspace, build.shards())


def _published(
    output: Path,
    corpus: Corpus,
    encoder: EncoderContract,
    workspace: Workspace,
    entries: Sequence[ShardEntry],
) -> BuildReport:
    """Make an index of finished shards and put it in its place."""
    files = {name: record for entry in entries for name, record in entry.files.items()}
    records = read_records(workspace.index, files)
    skipped = (*corpus.skipped, *(failure for entry in entries for failure in entry.failures))
    if not records:
        workspace.clear()
        raise _nothing_readable(skipped, corpus)
    warnings = corpus.warnings
    if is_single_file(output):
        vectors = np.concatenate(map_vectors(workspace.index, files, encoder.dim))
        write_npz(output, encoder, vectors, records)
        workspace.clear()
    else:
        _complete(workspace.index, encoder, files, records, skipped, entries)
        if not carry_calibration(output, workspace.index):
            warnings = (*warnings, CALIBRATION_LOST)
        workspace.publish()
    return _report(output, corpus, entries, records, skipped, warnings)


@dataclass(frozen=True, slots=True)
class _Build:
    corpus: Corpus
    encoder: EncoderContract
    encode: Encode
    workspace: Workspace
    previous: Previous
    batch_size: int
    workers: int
    limits: ImageLimits
    on_progress: OnProgress | None

    def shards(self) -> list[ShardEntry]:
        """Make every shard that is not there yet; each covers SHARD_ROWS files, readable or not."""
        entries: list[ShardEntry] = []
        source = iter(self.corpus.items)
        skipped = len(self.corpus.skipped)
        while items := list(islice(source, SHARD_ROWS)):
            number = len(entries)
            plan = plan_of(items, self.encoder.fingerprint)
            entry = self.workspace.finished(number, plan)
            if entry and entry.stats != tuple(stat_of(self.corpus.root / item.path) for item in items):
                entry = None  # a photo has changed since
            if entry is None:
                entry = self._make(number, plan, items, skipped)
                self.workspace.finish(number, entry)
            else:
                self._tell(number * SHARD_ROWS + len(items), skipped + len(entry.failures))
            skipped += len(entry.failures)
            entries.append(entry)
        self.workspace.keep_only(len(entries))
        return entries

    def _make(self, number: int, plan: str, items: Sequence[CorpusItem], skipped: int) -> ShardEntry:
        vectors = np.empty((len(items), self.encoder.dim), np.float32)
        records: list[Record] = []
        indexed: list[int] = []
        failures: list[SkippedFile] = []
        stats: list[tuple[int, int] | None] = []
        waiting: list[tuple[int, Image.Image]] = []
        encoded = 0
        for position, taken in enumerate(self._taken(items)):
            stats.append(taken.stat)
            if taken.error is not None:
                failures.append(SkippedFile(taken.item.path, taken.error.code, taken.error.reason))
            else:
                row = len(records)
                records.append(Record(taken.item.path, taken.item.label, taken.sha256))
                indexed.append(position)
                if taken.known_row is not None:
                    vectors[row] = self.previous.vector(taken.known_row)
                elif taken.image is not None:
                    waiting.append((row, taken.image))
                    encoded += 1
            if len(waiting) == self.batch_size:
                self._encode(waiting, vectors)
                waiting = []
            self._tell(number * SHARD_ROWS + position + 1, skipped + len(failures))
        if waiting:
            self._encode(waiting, vectors)
        files = write_shard(self.workspace.index, number, vectors[: len(records)], records)
        return ShardEntry(plan, files, tuple(stats), tuple(indexed), tuple(failures), encoded)

    def _taken(self, items: Sequence[CorpusItem]) -> Iterator[Taken]:
        def look(item: CorpusItem) -> Taken:
            return take(item, self.corpus.root, self.limits, self.previous)

        return in_order(look, items, self.workers)

    def _encode(self, waiting: Sequence[tuple[int, Image.Image]], vectors: FloatArray) -> None:
        """Encode images into their rows, checking the encoder against its contract."""
        found = self.encode([image for _, image in waiting])
        expected = (len(waiting), self.encoder.dim)
        if found.shape != expected or not np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-3):
            raise ModelError(
                f"encoder {self.encoder.name!r} must return unit rows {expected}, got {found.shape}"
            )
        vectors[[row for row, _ in waiting]] = found

    def _tell(self, seen: int, skipped: int) -> None:
        if self.on_progress:
            self.on_progress(Progress(seen, len(self.corpus.items), skipped))


def _complete(
    folder: Path,
    encoder: EncoderContract,
    files: dict[str, FileRecord],
    records: Sequence[Record],
    skipped: Sequence[SkippedFile],
    entries: Sequence[ShardEntry],
) -> None:
    """Add to the shards what makes them an index; the manifest last."""
    engine = flat_index(np.empty((0, encoder.dim), np.float32))
    for part in map_vectors(folder, files, encoder.dim):
        engine.add(np.asarray(part))
    content = faiss.serialize_index(engine).tobytes()
    files = files | {FAISS_FILE: replace_file(folder / FAISS_FILE, content, engine.ntotal)}
    files |= write_failures(folder, skipped)
    stats = np.asarray([entry.stats[i] for entry in entries for i in entry.indexed], np.int64)
    with (folder / STATS).open("wb") as file:  # a cache: it need not survive a crash
        np.save(file, stats.reshape(-1, 2), allow_pickle=False)
    manifest = Manifest(
        encoder=encoder,
        count=len(records),
        labels=dict(sorted(Counter(record.label for record in records).items())),
        files=files,
        skipped=dict(sorted(Counter(s.code for s in skipped).items())),
    )
    replace_file(folder / MANIFEST, manifest.to_json())


def _report(
    output: Path,
    corpus: Corpus,
    entries: Sequence[ShardEntry],
    records: Sequence[Record],
    skipped: tuple[SkippedFile, ...],
    warnings: tuple[str, ...],
) -> BuildReport:
    same_bytes: defaultdict[str, list[Record]] = defaultdict(list)
    for record in records:
        same_bytes[record.sha256].append(record)
    groups = [group for group in same_bytes.values() if len(group) > 1]
    read = [stat for entry in entries for stat in entry.stats]
    return BuildReport(
        output=output,
        indexed=len(records),
        encoded=sum(entry.encoded for entry in entries),
        labels=dict(sorted(Counter(record.label for record in records).items())),
        skipped=skipped,
        changed=tuple(
            item.path
            for item, stat in zip(corpus.items, read, strict=True)
            if stat_of(corpus.root / item.path) != stat
        ),
        duplicates=sum(len(group) - 1 for group in groups),
        conflicts=tuple(
            tuple(record.path for record in group) for group in groups if len({r.label for r in group}) > 1
        ),
        warnings=warnings,
    )


def _nothing_readable(skipped: Sequence[SkippedFile], corpus: Corpus) -> CorpusError:
    codes = Counter(item.code for item in skipped)
    seen = ", ".join(f"{count} {code}" for code, count in sorted(codes.items()))
    return CorpusError(f"no image of {corpus.root} could be read ({seen}); nothing was written")
