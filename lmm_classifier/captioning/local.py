"""Captions by a model of this process."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from lmm_classifier.captioning.source import CaptionFailure, Keep, Outcome
from lmm_classifier.config.pipeline import make_step
from lmm_classifier.corpus.corpus import SkippedFile
from lmm_classifier.errors import ModelError
from lmm_classifier.pipeline import Pipeline
from lmm_classifier.steps.caption import Caption
from lmm_classifier.types import Sample, required


@dataclass(frozen=True, slots=True)
class LocalModel:
    """Asks the model of a step, a batch at a time; threads read the next batch meanwhile."""

    step: Caption

    @classmethod
    def named(cls, model: str, max_length: int) -> LocalModel:
        """A captioner by its family, or family=weights.

        Raises:
            ConfigError: there is no such family, or the length is out of range.
        """
        family, _, weights = model.partition("=")
        options = {"model": {"family": family, "weights": weights}, "max_length": max_length}
        return cls(cast("Caption", make_step("caption", options)))

    def check(self) -> None:
        self.step.load()

    def outcomes(self, photos: Sequence[Path], keep: Keep) -> Generator[Outcome, None, None]:
        line = Pipeline((self.step,), self.step.batch_size)
        with closing(line.read_files(photos)) as batches:
            for batch in batches:
                found = _captions(line, [item for item in batch if isinstance(item, Sample)])
                for item in batch:
                    if isinstance(item, SkippedFile):
                        yield CaptionFailure(f"{item.reason} [{item.code}]", its_own=True)
                        continue
                    caption = next(found)
                    yield (
                        caption
                        if isinstance(caption, CaptionFailure)
                        else keep(Path(item.sample_id), caption)
                    )


def _captions(line: Pipeline, samples: list[Sample]) -> Iterator[str | CaptionFailure]:
    """A text per sample; a batch that the model fails at is tried again one by one."""
    try:
        finished = list(line.run(samples))
    except ModelError as error:
        if len(samples) == 1:
            yield CaptionFailure(str(error))
            return
        for sample in samples:
            yield from _captions(line, [sample])
    else:
        yield from (required(sample.captions)[0] for sample in finished)
