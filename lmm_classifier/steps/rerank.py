"""uncertain verdicts -> verdicts, by a vision-language model."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from typing import ClassVar, Self

import numpy as np
from PIL import Image
from pydantic import model_validator
from pydantic.dataclasses import dataclass

from lmm_classifier import registry
from lmm_classifier.errors import ModelError
from lmm_classifier.models.base import ModelSpec, Question, input_size_of, load_chooser, rate
from lmm_classifier.models.prompt import DEFAULT_PROMPT, render_prompt
from lmm_classifier.pipeline import Step
from lmm_classifier.ranges import BatchSize, Candidates, Flag
from lmm_classifier.types import UNKNOWN, Choice, Sample, Scores, Status, Verdict, required

log = logging.getLogger(__name__)

MAJORITY = 0.5
"""A label the model gives less than this is its best guess among the options, not more."""


@plain_dataclass(frozen=True, slots=True, eq=False)
class _Case:
    """An uncertain region on its way to the model."""

    sample: int
    region: int
    question: Question


@dataclass(frozen=True, config={"extra": "forbid"})
class Rerank(Step):
    """Ask a vision-language model about the regions that retrieval left uncertain, and only those.

    The model is opened when the first uncertain region arrives. Where it fails, retrieval's answer
    stands and the verdict says that it is degraded, and why.

    Attributes:
        model: the chooser.
        max_candidates: best labels shown to the model.
        max_batch_size: (image, candidate) pairs per forward pass.
        prompt_template: {candidates} and {image_description} are filled in; labels literally.
        allow_unknown: offer "unknown" beside the candidates.
    """

    name: ClassVar[str] = "rerank"
    requires: ClassVar[frozenset[str]] = frozenset({"image", "regions", "scores", "verdicts"})
    provides: ClassVar[frozenset[str]] = frozenset({"verdicts", "choices"})

    model: ModelSpec
    max_candidates: Candidates = 5
    max_batch_size: BatchSize = 8
    prompt_template: str = DEFAULT_PROMPT
    allow_unknown: Flag = True

    @model_validator(mode="after")
    def _usable(self) -> Self:
        registry.check("chooser", self.model.family)
        if "{candidates}" not in self.prompt_template:
            raise ValueError("prompt_template must hold {candidates}, where the labels go")
        return self

    def load(self) -> None:
        load_chooser(self.model)

    def resolution(self) -> int | None:
        return input_size_of(
            registry.resolve("chooser", self.model.family)
        )  # of the class: nothing is opened

    def run(self, batch: Sequence[Sample]) -> list[Sample]:
        cases = [case for i, sample in enumerate(batch) for case in self._uncertain(i, sample)]
        verdicts = [list(required(sample.verdicts)) for sample in batch]
        choices: list[list[Choice | None]] = [[None] * len(sample.regions) for sample in batch]
        answers = self._ask([case.question for case in cases])
        if errors := [answer for answer in answers if isinstance(answer, ModelError)]:
            log.warning(
                "rerank failed for %d of %d uncertain regions: %s", len(errors), len(cases), errors[0]
            )
        for case, answer in zip(cases, answers, strict=True):
            if isinstance(answer, ModelError):  # fail open, visibly: the answer of retrieval is still one
                old = verdicts[case.sample][case.region]
                verdicts[case.sample][case.region] = replace(old, degraded=f"rerank: {answer}")
            else:
                choices[case.sample][case.region] = answer
                old = verdicts[case.sample][case.region]
                verdicts[case.sample][case.region] = self._verdict(old, answer)
        return [
            replace(sample, verdicts=tuple(v), choices=tuple(c))
            for sample, v, c in zip(batch, verdicts, choices, strict=True)
        ]

    def _ask(self, questions: Sequence[Question]) -> list[Choice | ModelError]:
        """What the model makes of each question, or why it could not be asked."""
        if not questions:
            return []
        try:
            rated = rate(self.model, questions, self.max_batch_size)
        except ModelError as error:
            if len(questions) > 1:  # one bad picture must not cost the others their answer
                return [answer for question in questions for answer in self._ask([question])]
            return [error]
        return [Choice(q.options, values) for q, values in zip(questions, rated, strict=True)]

    def _uncertain(self, position: int, sample: Sample) -> Iterator[_Case]:
        crops = sample.crops()
        for i, verdict in enumerate(required(sample.verdicts)):
            if verdict.status == "uncertain" and verdict.route != "review":
                options = self._options(crops[i], required(sample.scores), i, verdict.candidates)
                if len(options) > 1:  # a single answer needs no asking
                    prompt = render_prompt(self.prompt_template, options)
                    yield _Case(position, i, Question(crops[i], prompt, options))

    def _options(
        self, crop: Image.Image, scores: Scores, region: int, possible: tuple[str, ...]
    ) -> tuple[str, ...]:
        """What the model may answer, in an order seeded by the image: rank order would give rank 1 away.

        The labels that remain possible where the policy names them, else the best ones.
        """
        ranked = np.argsort(-scores.values[region], kind="stable")[: self.max_candidates]
        options = sorted(set(possible) - {UNKNOWN} or {scores.labels[j] for j in ranked})
        if self.allow_unknown and UNKNOWN not in options and (not possible or UNKNOWN in possible):
            options.append(UNKNOWN)
        seed = hashlib.sha256(np.ascontiguousarray(crop).data).digest()
        order = np.random.default_rng(list(seed)).permutation(len(options))
        return tuple(options[j] for j in order)

    def _verdict(self, old: Verdict, choice: Choice) -> Verdict:
        probabilities = choice.probabilities
        best = max(probabilities, key=probabilities.__getitem__)
        probability = probabilities[best]
        reason = f"the model gives {best!r} {probability:.3f} among {len(probabilities)} options"
        if best == UNKNOWN and self.allow_unknown:
            return replace(
                old, status="unknown", label=None, score=probability, decided_by=self.name, reason=reason
            )
        status: Status = "known" if probability >= MAJORITY else "uncertain"
        return replace(old, status=status, label=best, score=probability, decided_by=self.name, reason=reason)
