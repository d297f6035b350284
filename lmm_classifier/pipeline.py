"""The Step contract, and the fold that runs steps over samples."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, chain, islice, pairwise
from pathlib import Path
from typing import ClassVar, TypeVar, cast

from PIL import Image

from lmm_classifier.corpus.corpus import SkippedFile
from lmm_classifier.corpus.images import DEFAULT_LIMITS, ImageLimits, load_image_file
from lmm_classifier.errors import ConfigError, ImageError, StepError
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.storage.prefetch import prefetch_map
from lmm_classifier.types import FloatArray, IntArray, Sample, read_only


class Step(ABC):
    """One stage of the pipeline: a frozen dataclass whose fields are its whole configuration.

    Subclass it with `@pydantic.dataclasses.dataclass(frozen=True, config={"extra": "forbid"})`.
    tests/contract holds every registered step to these rules:

      1. The fields are the whole configuration; unknown keys and out-of-range values are refused.
      2. Constructing a step is free: no file, network or model is touched. Equal steps are equal values.
      3. `run` returns one sample per input, in order, with the same ids.
      4. `run` changes only the sample fields named in `provides`. It never gets a sample that is skipped.
      5. `run([]) == []`, and an answer does not depend on the batch it came in.
      6. It never swallows an exception.
    """

    name: ClassVar[str]
    requires: ClassVar[frozenset[str]]
    provides: ClassVar[frozenset[str]]

    def load(self) -> None:  # noqa: B027 -- most steps have nothing to open
        """Open models and files now instead of on the first batch. Idempotent."""

    def resolution(self) -> int | None:
        """Px of the shorter side of a photo that this step makes use of; None: every pixel. May open a model.

        A step that does not read `image` needs none. One that reads it needs full resolution by default.
        """
        return None if "image" in self.requires else 0

    def models(self) -> tuple[ModelSpec, ...]:
        """The models among the options."""
        values = (getattr(self, name) for name in getattr(self, "__dataclass_fields__", {}))
        return tuple(value for value in values if isinstance(value, ModelSpec))

    @abstractmethod
    def run(self, batch: Sequence[Sample]) -> list[Sample]:
        """Process one batch."""


S = TypeVar("S", bound="Sequence[object] | FloatArray | IntArray")


def crops_of(batch: Sequence[Sample]) -> list[Image.Image]:
    """Pixels of the regions looked at, of all samples in one list: a model takes them together."""
    return [crop for sample in batch for crop in sample.crops()]


def by_sample(batch: Sequence[Sample], rows: S) -> list[S]:
    """What was made of `crops_of(batch)`, a row per crop, handed out again per sample."""
    ends = [0, *accumulate(sample.n_looked_at for sample in batch)]
    return [cast("S", rows[start:end]) for start, end in pairwise(ends)]


@dataclass(frozen=True)
class Pipeline:
    """Steps in order. Wiring is checked on construction, before any model is opened.

    Raises:
        ConfigError: a step reads a field that no earlier step sets.
    """

    steps: tuple[Step, ...]
    batch_size: int = 16

    def __post_init__(self) -> None:
        available = {"image", "regions"}
        for step in self.steps:
            if missing := sorted(step.requires - available):
                raise ConfigError(
                    f"step {step.name!r} needs {', '.join(missing)}, which no earlier step provides; "
                    f"the order given is {' -> '.join(s.name for s in self.steps)}"
                )
            available |= step.provides

    def resolution(self) -> int | None:
        """Px of the shorter side that photos must have at least, unless they are smaller; None: every pixel.

        Where a step proposes regions it is every pixel: a small part of a photo must have enough of them.
        May open a model.

        Raises:
            ModelError: a model that must be asked cannot be opened.
        """
        if any("regions" in step.provides for step in self.steps):
            return None
        needs = [step.resolution() for step in self.steps]
        known = [need for need in needs if need is not None]
        return max([1, *known]) if len(known) == len(needs) else None

    def run(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Yield finished samples in input order, `batch_size` at a time."""
        source = iter(samples)
        while batch := list(islice(source, self.batch_size)):
            yield from _run_steps(self.steps, batch)

    def run_files(
        self, paths: Iterable[str | Path], limits: ImageLimits = DEFAULT_LIMITS
    ) -> Generator[Sample | SkippedFile, None, None]:
        """Yield finished samples of photos as they are read, a batch at a time, in the order of the paths.

        A photo that cannot be read yields its reason.
        """
        with closing(self.read_files(paths, limits)) as batches:
            for batch in batches:
                finished = self.run(item for item in batch if isinstance(item, Sample))
                for item in batch:
                    yield next(finished) if isinstance(item, Sample) else item

    def read_files(
        self, paths: Iterable[str | Path], limits: ImageLimits = DEFAULT_LIMITS
    ) -> Generator[list[Sample | SkippedFile], None, None]:
        """Yield photos that no step has seen yet, a batch at a time, in the order of the paths.

        Threads read the next batch while the caller is at one. Memory does not grow with the number of
        photos: two batches of them are open at a time.
        """
        source = iter(paths)
        for first in islice(source, 1):  # to look at no photo, no model is asked what it needs
            look = partial(_opened, target_size=self.resolution(), limits=limits)
            workers = min(os.cpu_count() or 1, self.batch_size)
            opened = prefetch_map(look, chain([first], source), workers, self.batch_size)
            with closing(opened):
                while batch := list(islice(opened, self.batch_size)):
                    yield batch


def _opened(path: str | Path, target_size: int | None, limits: ImageLimits) -> Sample | SkippedFile:
    try:
        loaded = load_image_file(path, target_size=target_size, limits=limits)
    except ImageError as error:
        return SkippedFile(str(path), error.code, error.reason)
    return Sample.from_image(str(path), loaded.image, sha256=loaded.sha256)


def run_shared(
    batch: Sequence[Sample],
    lines: Sequence[tuple[Step, ...]],
    passed: Mapping[tuple[Step, ...], Sequence[Sample]] | None = None,
) -> list[list[Sample]]:
    """Run several lines of steps over one batch; what two lines begin with runs once.

    Equal steps after equal steps have equal inputs, and steps are values: the beginnings of the lines are
    the keys. Nothing else is shared, so a line never sees what another made.

    Args:
        batch: the samples.
        lines: the steps of each line.
        passed: beginnings that earlier calls have run -> these samples as they came out of them.

    Returns:
        per line, the finished samples in order.

    Raises:
        ConfigError: the wiring of a line is wrong.
        LmmClassifierError: as the steps raise it.
    """
    for line in lines:
        Pipeline(line)
    done: dict[tuple[Step, ...], list[Sample]] = {(): list(batch)}
    done |= {begun: list(samples) for begun, samples in (passed or {}).items()}
    for line in lines:
        known = max(n for n in range(len(line) + 1) if line[:n] in done)
        for n in range(known, len(line)):
            done[line[: n + 1]] = run_step(line[n], done[line[:n]])
    return [done[line] for line in lines]


def run_step(step: Step, batch: list[Sample]) -> list[Sample]:
    """Run a step over the samples that are not skipped; the others stay where they are.

    Raises:
        StepError: it lost, added or reordered samples.
        LmmClassifierError: as the step raises it.
    """
    return _run_steps((step,), batch)


def _run_steps(steps: Sequence[Step], batch: list[Sample]) -> list[Sample]:
    """As `run_step`, one step after the other."""
    seconds: list[tuple[str, float]] = []
    passed = [0] * len(batch)  # steps that a sample went through: one that is skipped goes through no other
    for step in steps:
        active = [sample for sample in batch if sample.skipped is None]
        started = time.perf_counter()
        result = step.run(active)
        seconds.append((step.name, (time.perf_counter() - started) / max(len(active), 1)))
        if [s.sample_id for s in result] != [s.sample_id for s in active]:
            raise StepError(f"step {step.name!r} lost, added or reordered samples")
        passed = [n + (sample.skipped is None) for n, sample in zip(passed, batch, strict=True)]
        done = iter(result)
        batch = [sample if sample.skipped else next(done) for sample in batch]
    return [_timed(sample, seconds[:n]) for sample, n in zip(batch, passed, strict=True)]


def _timed(sample: Sample, seconds: Sequence[tuple[str, float]]) -> Sample:
    """The sample, with the seconds of these steps; a line may hold a step twice, such as two detectors."""
    if not seconds:
        return sample
    timings = dict(sample.timings)
    for name, spent in seconds:
        timings[name] = timings.get(name, 0.0) + spent
    return replace(sample, timings=read_only(timings))
