"""uncertain verdicts -> verdicts, by a vision-language model."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from PIL import Image
from pydantic import model_validator
from pydantic.dataclasses import dataclass

from lmm_classifier import registry
from lmm_classifier.decision.fusion import decided, fused_logits, retrieval_probabilities
from lmm_classifier.errors import ConfigError, ModelError
from lmm_classifier.index.calibration import RerankTrial, read_calibration
from lmm_classifier.models.base import ModelSpec, Question, input_size_of, load_chooser, rate
from lmm_classifier.models.prompt import DEFAULT_PROMPT, render_prompt
from lmm_classifier.pipeline import Step
from lmm_classifier.ranges import BatchSize, Candidates, Flag, Seconds
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
    stands and the verdict says that it is degraded, and why. Where it is not asked, the verdict says so.

    Attributes:
        model: the chooser.
        max_candidates: best labels shown to the model.
        max_batch_size: (image, candidate) pairs per forward pass.
        max_seconds: time for the questions of one batch. No pass is begun that would, going by the last
            one, end later; the regions left over keep retrieval's answer.
        prompt_template: {candidates} and {image_description} are filled in; labels literally.
        allow_unknown: offer "unknown" beside the candidates.
        calibration: index folder whose calibration, where the reranker was tried for it, says how its
            opinion is weighed against retrieval's, and whether it is asked at all.
    """

    name: ClassVar[str] = "rerank"
    requires: ClassVar[frozenset[str]] = frozenset({"image", "regions", "scores", "verdicts"})
    provides: ClassVar[frozenset[str]] = frozenset({"verdicts", "choices"})

    model: ModelSpec
    max_candidates: Candidates = 5
    max_batch_size: BatchSize = 8
    prompt_template: str = DEFAULT_PROMPT
    allow_unknown: Flag = True
    max_seconds: Seconds | None = None
    calibration: Path | None = None

    @property
    def identity(self) -> str:
        """What an opinion depends on: a trial holds for this reranker and no other."""
        model = f"{self.model.family} {self.model.weights} {self.model.revision}"
        prompt = hashlib.sha256(self.prompt_template.encode()).hexdigest()[:16]
        return f"{model.strip()}, {self.max_candidates} candidates, prompt {prompt}"

    def trial(self) -> RerankTrial | None:
        """What the calibration says of this reranker; None without one.

        Raises:
            ConfigError: another reranker was tried.
        """
        fitted = read_calibration(self.calibration) if self.calibration else None
        trial = fitted.calibration.rerank if fitted else None
        if trial and trial.asked != self.identity:
            raise ConfigError(
                f"{self.calibration} was calibrated with reranker {trial.asked}, the settings say "
                f"{self.identity}: calibrate again"
            )
        return trial

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
        trial = self.trial() if batch else None
        verdicts = [list(required(sample.verdicts)) for sample in batch]
        choices: list[list[Choice | None]] = [[None] * sample.n_looked_at for sample in batch]
        cases = []
        for case in (case for i, sample in enumerate(batch) for case in self._uncertain(i, sample)):
            old = verdicts[case.sample][case.region]
            if trial and (reason := _not_worth_it(trial, old)):
                verdicts[case.sample][case.region] = replace(old, rerank_skipped=reason)
            else:
                cases.append(case)
        answers = list(self._answers([case.question for case in cases]))
        if errors := [answer for answer in answers if isinstance(answer, ModelError)]:
            log.warning(
                "rerank failed for %d of %d uncertain regions: %s", len(errors), len(cases), errors[0]
            )
        for case, answer in zip(cases, answers, strict=True):
            old = verdicts[case.sample][case.region]
            if answer is None:
                skipped = f"the {self.max_seconds:g} s for this batch were up"
                verdicts[case.sample][case.region] = replace(old, rerank_skipped=skipped)
            elif isinstance(answer, ModelError):  # fail open, visibly: the answer of retrieval is still one
                verdicts[case.sample][case.region] = replace(old, degraded=f"rerank: {answer}")
            else:
                choices[case.sample][case.region] = answer
                scores = required(batch[case.sample].scores)
                verdicts[case.sample][case.region] = self._verdict(old, answer, scores, case.region, trial)
        return [
            replace(sample, verdicts=tuple(v), choices=tuple(c))
            for sample, v, c in zip(batch, verdicts, choices, strict=True)
        ]

    def _answers(self, questions: Sequence[Question]) -> Iterator[Choice | ModelError | None]:
        """What the model makes of each question, why it could not be asked, or None where time was up."""
        if self.max_seconds is None:
            yield from self._ask(questions)
            return
        started = time.monotonic()
        longest = 0.0
        for run in _runs(questions, self.max_batch_size):
            begun = time.monotonic()
            if begun + longest > started + self.max_seconds:
                yield from [None] * len(run)
                continue
            yield from self._ask(run)
            longest = max(longest, time.monotonic() - begun)

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

    def _verdict(
        self, old: Verdict, choice: Choice, scores: Scores, region: int, trial: RerankTrial | None
    ) -> Verdict:
        probabilities, who = choice.probabilities, "the model gives"
        best = max(probabilities, key=probabilities.__getitem__)
        if trial is not None:
            closeness = float(scores.closeness[region])
            retrieval = retrieval_probabilities(
                choice.options, scores.labels, scores.values[region], closeness
            )
            logits = fused_logits(trial.fusion, choice, retrieval)
            best = choice.options[decided(trial.fusion, logits, choice.options.index(required(old.label)))]
            fused = Choice(choice.options, np.asarray(logits - np.logaddexp.reduce(logits), np.float32))
            probabilities, who = fused.probabilities, "model and retrieval give"
        probability = probabilities[best]
        reason = f"{who} {best!r} {probability:.3f} among {len(probabilities)} options"
        unknown = best == UNKNOWN and self.allow_unknown
        status: Status = "unknown" if unknown else "known" if probability >= MAJORITY else "uncertain"
        return replace(
            old,
            status=status,
            label=None if unknown else best,
            score=probability,
            decided_by=self.name,
            reason=reason,
        )


def _not_worth_it(trial: RerankTrial, verdict: Verdict) -> str | None:
    """Why the calibration says not to ask about this verdict."""
    if not trial.helps:
        return f"it corrects {trial.corrections} and spoils {trial.regressions} of {trial.cases} photos here"
    if verdict.label in trial.not_for:
        return f"it spoils more photos of {verdict.label!r} than it corrects"
    return None


def _runs(questions: Sequence[Question], pairs: int) -> Iterator[Sequence[Question]]:
    """Questions that fill a forward pass each: at most so many (image, candidate) pairs, or one question."""
    run: list[Question] = []
    for question in questions:
        if run and sum(len(q.options) for q in run) + len(question.options) > pairs:
            yield run
            run = []
        run.append(question)
    if run:
        yield run
