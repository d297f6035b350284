"""A labelled corpus to an index on disk: decode, encode, write shard by shard, publish at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from lmm_classifier.corpus.corpus import Corpus, SkippedFile
from lmm_classifier.corpus.images import DEFAULT_LIMITS, ImageLimits
from lmm_classifier.errors import CorpusError, IndexFolderError
from lmm_classifier.index.engine import check_factory
from lmm_classifier.index.existing import NOTHING, ExistingIndex, Task, open_existing
from lmm_classifier.index.manifest import EXACT
from lmm_classifier.index.publish import SearchOptions, publish, same_content
from lmm_classifier.index.reading import ImageReading, stat_now
from lmm_classifier.index.shard_builder import BuiltShard, MakesVectors, OnTaken, Work, make_shard
from lmm_classifier.index.shards import SHARD_ROWS, read_records, write_shard
from lmm_classifier.index.workspace import ShardEntry, Workspace, locked_workspace, plan_of
from lmm_classifier.storage.atomic_files import is_single_file
from lmm_classifier.storage.progress import OnProgress, Progress, ignore_progress

MAX_BAD_RATIO = 0.05


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How an index is made; none of it but `target_size` moves a vector.

    Attributes:
        batch_size: images per model call.
        workers: threads that read and decode.
        limits: what a photo may be.
        target_size: px that every encoder scales the shorter side down to or below; JPEGs are then
            decoded no larger than needed. None decodes every pixel.
        max_bad_ratio: share of unreadable images above which the build fails instead of leaving them out.
        search: how the index is to be searched.
        shard_rows: images per shard: what a kill costs at most, and what a worker takes at a time. None
            means SHARD_ROWS. Another number next time cuts the files anew, without encoding anything again.
    """

    batch_size: int = 32
    workers: int = 2
    limits: ImageLimits = DEFAULT_LIMITS
    target_size: int | None = None
    max_bad_ratio: float = MAX_BAD_RATIO
    search: SearchOptions = field(default_factory=SearchOptions)
    shard_rows: int | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "workers", "shard_rows"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise CorpusError(f"{name} must be at least 1, got {value}")


DEFAULT_OPTIONS = BuildOptions()


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build did. Every file of the corpus is either indexed or in `skipped`.

    Attributes:
        output: the index.
        indexed: number of images in it.
        encoded: how many of them were encoded now; the others were there already.
        removed: how many images of the former index are not in it any more.
        labels: label -> number of its images.
        skipped: files that were not indexed, with code and reason.
        changed: paths of files that changed while the build ran; the index holds what was read.
        duplicates: images whose bytes an earlier image of the corpus has too.
        conflicts: groups of paths with the same bytes and different labels.
        warnings: one line each: what is odd about the corpus, though not fatal.
    """

    output: Path
    indexed: int
    encoded: int
    removed: int
    labels: dict[str, int]
    skipped: tuple[SkippedFile, ...]
    changed: tuple[str, ...]
    duplicates: int
    conflicts: tuple[tuple[str, ...], ...]
    warnings: tuple[str, ...]


class Runner(Protocol):
    """Where shards are made: in this process, or on many machines."""

    def run(
        self, jobs: Iterable[tuple[int, Sequence[Task]]], work: Work, on_taken: OnTaken
    ) -> Iterator[tuple[int, BuiltShard]]:
        """Make a shard of each numbered job, in any order. `on_taken` is called once per task."""
        ...


@dataclass(frozen=True, slots=True)
class LocalRunner:
    """Shards made one after the other in this process."""

    def run(
        self, jobs: Iterable[tuple[int, Sequence[Task]]], work: Work, on_taken: OnTaken
    ) -> Iterator[tuple[int, BuiltShard]]:
        for number, tasks in jobs:
            yield number, make_shard(tasks, work, on_taken)


LOCAL = LocalRunner()


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """What an index is to hold.

    Attributes:
        root: what relative paths start from.
        tasks: images to read or to keep, in row order.
        skipped: entries that were seen and are no task.
        warnings: of the corpus.
        noted: skipped files of earlier builds, which stay on record.
    """

    root: Path
    tasks: tuple[Task, ...]
    skipped: tuple[SkippedFile, ...] = ()
    warnings: tuple[str, ...] = ()
    noted: tuple[SkippedFile, ...] = ()


def write_index(
    corpus: Corpus,
    encoders: Sequence[MakesVectors],
    output: Path,
    options: BuildOptions = DEFAULT_OPTIONS,
    *,
    rebuild: bool = False,
    runner: Runner = LOCAL,
    on_progress: OnProgress = ignore_progress,
) -> BuildReport:
    """Make an index hold exactly the readable images of a corpus.

    An index that is already there is synchronised: vectors of files that have not changed, or that hold
    the same bytes under another name, are taken over. The result is the same, byte for byte, as that of
    a build from nothing. A build that was interrupted goes on where it was, a shard at most redone.

    Args:
        corpus: what to index; images that cannot be read are skipped and reported.
        encoders: what makes the vectors; each photo is decoded once for all of them.
        output: a path ending in `.npz` for the documented single file, anything else for the folder.
            An index already there is replaced at the very end, or not at all.
        options: how.
        rebuild: start over, whatever is there.
        runner: where the shards are made.
        on_progress: called after each file.

    Raises:
        CorpusError: too many images could not be read, or not one.
        ModelError: an encoder failed or broke its contract.
        ConfigError: FAISS cannot make the search structure that was asked for.
        IndexFolderError: the output cannot be written, is being written, or holds a damaged index.
        EncoderMismatchError: the index that is there was built by another encoder.
    """
    contracts = [encoder.contract for encoder in encoders]
    if is_single_file(output) and len(encoders) > 1:
        raise IndexFolderError(f"{output} is a single file, which holds one encoder; give a folder instead")
    for contract in contracts:
        check_factory(options.search.factory or EXACT, contract.dim)
    with locked_workspace(output) as workspace:
        if rebuild:
            workspace.clear()
        fresh = rebuild or is_single_file(output)
        existing = NOTHING if fresh else open_existing(output, contracts)
        plan = BuildPlan(corpus.root, corpus.items, corpus.skipped, corpus.warnings)
        return carry_out(plan, encoders, output, workspace, existing, options, runner, on_progress)


def carry_out(
    plan: BuildPlan,
    encoders: Sequence[MakesVectors],
    output: Path,
    workspace: Workspace,
    existing: ExistingIndex,
    options: BuildOptions,
    runner: Runner = LOCAL,
    on_progress: OnProgress = ignore_progress,
) -> BuildReport:
    """Make every shard of a plan in a locked workspace, and publish them. Errors as `write_index`."""
    reading = ImageReading(plan.root, options.limits, options.target_size, options.workers)
    work = Work(reading, encoders, existing, options.batch_size)
    contracts = [encoder.contract for encoder in encoders]
    workspace.prepare()
    build = _Build(plan, workspace, work, options.shard_rows or SHARD_ROWS, on_progress)
    entries = build.entries([plan_of(tasks, contracts) for _, tasks in build.jobs], runner)
    files = {name: record for entry in entries for name, record in entry.files.items()}
    records = read_records(workspace.index, files)
    failures = [failure for entry in entries for failure in entry.failures]
    skipped = (*plan.skipped, *failures)
    if not records:
        workspace.clear()
        raise _nothing_readable(skipped, plan.root)
    _refuse_bad(failures, plan, options.max_bad_ratio)
    noted = (*plan.noted, *skipped)
    warnings = publish(output, contracts, workspace, entries, records, noted, options.search, on_progress)
    duplicates, conflicts = same_content(records)
    kept = set(records.paths())
    read = [stat for entry in entries for stat in entry.stats]
    return BuildReport(
        output=output,
        indexed=len(records),
        encoded=sum(entry.encoded for entry in entries),
        removed=sum(path not in kept for path in existing.records.paths()),
        labels=records.counts(),
        skipped=skipped,
        changed=tuple(
            task.path
            for task, stat in zip(plan.tasks, read, strict=True)
            if stat_now(task, plan.root, existing) != stat
        ),
        duplicates=duplicates,
        conflicts=conflicts,
        warnings=(*plan.warnings, *warnings),
    )


class _Build:
    """The shards of one plan; each covers `shard_rows` tasks, readable or not."""

    def __init__(
        self, plan: BuildPlan, workspace: Workspace, work: Work, shard_rows: int, on_progress: OnProgress
    ) -> None:
        tasks = plan.tasks
        starts = range(0, len(tasks), shard_rows)
        self.jobs = [(number, tasks[i : i + shard_rows]) for number, i in enumerate(starts)]
        self._plan = plan
        self._workspace = workspace
        self._work = work
        self._on_progress = on_progress
        self._seen, self._skipped = 0, len(plan.skipped)

    def entries(self, plans: Sequence[str], runner: Runner) -> list[ShardEntry]:
        """Make every shard that is not there yet."""
        entries: dict[int, ShardEntry] = {}
        for number, tasks in self.jobs:
            if entry := self._finished(number, plans[number], tasks):
                entries[number] = entry
                self._tell(len(tasks), len(entry.failures))
        missing = [job for job in self.jobs if job[0] not in entries]
        for number, shard in runner.run(missing, self._work, lambda indexed: self._tell(1, not indexed)):
            files = write_shard(self._workspace.index, number, shard.vectors, shard.records)
            entries[number] = ShardEntry(
                plans[number], files, shard.stats, shard.indexed, shard.failures, shard.encoded
            )
            self._workspace.finish(number, entries[number])
            del shard  # or its vectors would be in memory beside those of the next
        self._workspace.keep_only(len(self.jobs))
        return [entries[number] for number, _ in self.jobs]

    def _finished(self, number: int, plan: str, tasks: Sequence[Task]) -> ShardEntry | None:
        entry = self._workspace.finished(number, plan)
        now = tuple(stat_now(task, self._plan.root, self._work.existing) for task in tasks) if entry else ()
        return entry if entry and entry.stats == now else None  # else a photo has changed since

    def _tell(self, seen: int, skipped: int) -> None:
        self._seen += seen
        self._skipped += skipped
        self._on_progress(Progress("indexing", self._seen, len(self._plan.tasks), self._skipped))


def _nothing_readable(skipped: Sequence[SkippedFile], root: Path) -> CorpusError:
    codes = Counter(item.code for item in skipped)
    seen = ", ".join(f"{count} {code}" for code, count in sorted(codes.items()))
    return CorpusError(f"no image of {root} could be read ({seen}); nothing was written")


def _refuse_bad(failures: Sequence[SkippedFile], plan: BuildPlan, max_bad_ratio: float) -> None:
    """A corpus that suddenly cannot be read must not replace one that could."""
    if len(failures) > max_bad_ratio * len(plan.tasks):
        first = failures[0]
        raise CorpusError(
            f"{len(failures)} of {len(plan.tasks)} images of {plan.root} cannot be read, such as "
            f"{first.path} ({first.reason}); nothing was published: mend or remove them, or raise "
            f"--max-bad-ratio from {max_bad_ratio}"
        )
