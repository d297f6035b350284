"""uncertain verdicts -> verdicts, by a vision-language model."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar, Self

from PIL import Image
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from lmm_classifier import registry
from lmm_classifier.decision.fusion import reconsidered
from lmm_classifier.errors import ConfigError, ImageError, ModelError, ModelUnavailableError, OutOfTimeError
from lmm_classifier.index.calibration import RerankTrial, read_calibration
from lmm_classifier.index.exemplars import COPY, nearest_of_label
from lmm_classifier.models.base import input_size_of
from lmm_classifier.models.loading import load_chooser
from lmm_classifier.models.runtime.deadline import within_deadline
from lmm_classifier.models.runtime.resizing import shrunk, side_of
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.models.vlm.answer_cache import rate
from lmm_classifier.models.vlm.self_test import self_test_fault
from lmm_classifier.models.vlm.strategies import (
    Case,
    Mode,
    PromptStrategy,
    Scoring,
    contradiction,
    default_template,
    needed_placeholder,
)
from lmm_classifier.options import BatchSize, Candidates, Exemplars, Flag, Permutations, Seconds, Share
from lmm_classifier.pipeline import Step
from lmm_classifier.rerank.budget import Budget, Result, asked_in_time, passes
from lmm_classifier.rerank.requests import RerankRequest, rerank_requests, skip_reason
from lmm_classifier.types import Choice, Sample, required

log = logging.getLogger(__name__)

# 256 visual tokens of Qwen2-VL: enough to tell kinds apart, not to fill a prompt
_EXEMPLAR_PIXELS = 448 * 448


@dataclass(frozen=True, config={"extra": "forbid"})
class Rerank(Step):
    """Ask a vision-language model about the regions that retrieval left uncertain, and only those.

    The model is opened when the first uncertain region arrives. Where it fails, retrieval's answer
    stands and the verdict says that it is degraded, and why. Where it is not asked, the verdict says so.

    Attributes:
        model: the chooser.
        mode: "listwise" shows all candidates at once; "pointwise" asks about each by itself; "pairwise"
            compares with photos of each.
        scoring: of a list, "likelihood" of the candidate's name; "normalised", the same per byte and less
            what a blank image gets; "letter", of the one it is listed under.
        max_candidates: best labels shown to the model.
        permutations: orders of a list that are asked and averaged.
        exemplars: photos shown per candidate, the nearest of its label; "pairwise" needs 1 at least.
        index: index folder in which they are looked up.
        corpus_root: folder that the index's photos start from.
        max_batch_size: (image, candidate) pairs per forward pass, or requests at once to a server.
        max_seconds: time for the questions of one batch. No pass is begun that would, going by the last
            one, end later; the regions left over keep retrieval's answer.
        deadline: seconds after an image came in from which nobody waits for the model's answer about it.
        max_share: of the regions of a batch that may be shown to the model, rounded down, but to one at
            least; the least certain ones are.
        prompt_template: {candidates} or {candidate}, and {image_description}, are filled in; labels
            literally. None: the mode's own.
        allow_unknown: offer "unknown" beside the candidates.
        calibration: index folder whose calibration, where the reranker was tried for it, says how its
            opinion is weighed against retrieval's, and whether it is asked at all.
        answers: file in which the model's answers are remembered; None remembers none.
        self_test: try the model on a few pictures when it is first asked.
        twin: a local model that one of a server must agree with in the self-test.
    """

    name: ClassVar[str] = "rerank"
    requires: ClassVar[frozenset[str]] = frozenset({"image", "regions", "scores", "verdicts"})
    provides: ClassVar[frozenset[str]] = frozenset({"verdicts", "choices"})

    model: ModelSpec
    mode: Mode = "listwise"
    scoring: Scoring = "likelihood"
    max_candidates: Candidates = 5
    permutations: Permutations = 1
    exemplars: Exemplars = 0
    index: Path | None = None
    corpus_root: Path | None = None
    max_batch_size: BatchSize = 8
    max_seconds: Seconds | None = None
    deadline: Seconds | None = None
    max_share: Annotated[Share, Field(gt=0)] | None = None
    prompt_template: str | None = None
    allow_unknown: Flag = True
    calibration: Path | None = None
    answers: Path | None = None
    self_test: Flag = True
    twin: ModelSpec | None = None

    @property
    def identity(self) -> str:
        """What an opinion depends on: a trial holds for this reranker and no other."""
        model = f"{self.model.family} {self.model.weights} {self.model.revision}"
        prompt = hashlib.sha256(self.template.encode()).hexdigest()[:16]
        way = f"{self.mode} {self.scoring}, {self.permutations} orders, {self.exemplars} exemplars"
        options = f"{self.max_candidates} candidates{' or unknown' if self.allow_unknown else ''}"
        budget = f", {self.model.budget}" if self.model.budget else ""
        return f"{model.strip()}{budget}, {way}, {options}, prompt {prompt}"

    @property
    def _asks_a_server(self) -> bool:
        known = registry.entry("chooser", self.model.family)
        return known is not None and known.asks_a_server

    @property
    def template(self) -> str:
        """The prompt's."""
        if self.prompt_template is None:
            return default_template(self.mode, self.scoring)
        return self.prompt_template

    @property
    def strategy(self) -> PromptStrategy:
        """How the model is asked."""
        return PromptStrategy(self.mode, self.scoring, self.template, self.permutations)

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
        needed = needed_placeholder(self.mode, self.scoring)
        if needed and needed not in self.template:
            raise ValueError(f"prompt_template must hold {needed}, where the labels go")
        if problem := contradiction(self.strategy, self.exemplars, self._asks_a_server):
            raise ValueError(problem)
        if self.exemplars and (self.index is None or self.corpus_root is None):
            raise ValueError("exemplars are photos of the index: set index, and corpus_root to their folder")
        if self.corpus_root is not None and not self.exemplars:
            raise ValueError("corpus_root is for exemplars: set how many, or leave it out")
        if self.twin and not (self.self_test and self._asks_a_server):
            raise ValueError("twin is what a server's model is compared with in the self-test: leave it out")
        return self

    def load(self) -> None:
        load_chooser(self.model)
        self._test()

    def resolution(self) -> int | None:
        size = input_size_of(registry.resolve("chooser", self.model.family))  # the class: none is opened
        return size and max(size, side_of(max(self.model.min_pixels or 0, self.model.max_pixels or 0)))

    def run(self, batch: Sequence[Sample]) -> list[Sample]:
        verdicts = [list(required(sample.verdicts)) for sample in batch]
        choices: list[list[Choice | None]] = [[None] * sample.n_looked_at for sample in batch]
        requests = [request for i, sample in enumerate(batch) for request in self.requests(sample, i)]
        trial = self.trial() if requests else None
        results = self.results(requests, trial, sum(map(len, verdicts)))
        for request, result in zip(requests, results, strict=True):
            old = replace(verdicts[request.place][request.region], certainty=request.certainty)
            if isinstance(result, str):
                new = replace(old, rerank_skipped=result)
            elif isinstance(result, ModelError):  # fail open, visibly: retrieval's answer is still one
                new = replace(old, degraded=f"rerank: {result}")
            else:
                fusion = trial.fusion if trial else None
                new = reconsidered(old, result, request.retrieval, fusion, self.allow_unknown)
                new = replace(new, decided_by=self.name)
                choices[request.place][request.region] = result
            verdicts[request.place][request.region] = new
        return [
            replace(sample, verdicts=tuple(v), choices=tuple(c))
            for sample, v, c in zip(batch, verdicts, choices, strict=True)
        ]

    def requests(self, sample: Sample, place: int = 0) -> Iterator[RerankRequest]:
        """The regions of a sample that the model may be asked about; `place` is its number in the batch."""
        return rerank_requests(sample, place, self.max_candidates, self.allow_unknown)

    def case(self, request: RerankRequest, due: float | None = None, below: float = COPY) -> Case:
        """What the model is shown of a region; photos that are more similar to it than `below` are not.

        Raises:
            ModelError: a photo of a candidate cannot be read.
        """
        case = Case(request.crop, request.options, {}, due, self.allow_unknown)
        if not self.exemplars:
            return case
        return replace(case, exemplars={x: self._photos_of(request, x, below) for x in case.labels})

    def comparable(self, case: Case) -> bool:
        """Whether there is a photo of each candidate, where they are compared with those."""
        return self.mode != "pairwise" or all(case.exemplars.values())

    def choices(self, cases: Sequence[Case]) -> list[Choice]:
        """What the model makes of cases.

        Raises:
            ModelError: as `rate`.
        """
        strategy = self.strategy
        asked = [strategy.questions(case) for case in cases]
        together = [question for each in asked for question in each]
        rated = iter(rate(self.model, together, self.max_batch_size, self.answers))
        return [
            Choice(case.options, strategy.log_probabilities(case, [next(rated) for _ in each]))
            for case, each in zip(cases, asked, strict=True)
        ]

    def results(
        self, requests: Sequence[RerankRequest], trial: RerankTrial | None, regions: int
    ) -> list[Result]:
        """Per request, what the model answers, why it could not be asked, or why it was not.

        Args:
            requests: of one batch.
            trial: what the calibration says of this reranker.
            regions: how many the batch has, those that are not uncertain included.
        """
        budget = Budget(time.monotonic(), self.max_share, self.max_seconds, self.deadline)
        reasons = [skip_reason(trial, request) if trial else None for request in requests]
        results: dict[int, Result] = {i: reason for i, reason in enumerate(reasons) if reason}
        left = [i for i in range(len(requests)) if i not in results]
        left.sort(key=lambda i: requests[i].certainty)
        most = budget.share(regions)
        if most is not None:
            reason = f"max_share allows {most} of {regions} photos, and this one is more certain than those"
            results |= dict.fromkeys(left[most:], reason)
            left = left[:most]
        results |= zip(left, self._answers([requests[i] for i in left], trial, budget), strict=True)
        if failed := [result for result in results.values() if isinstance(result, ModelError)]:
            log.warning("rerank failed for %d of %d uncertain regions: %s", len(failed), len(left), failed[0])
        return [results[i] for i in range(len(requests))]

    def _answers(
        self, requests: Sequence[RerankRequest], trial: RerankTrial | None, budget: Budget
    ) -> Iterator[Result]:
        def ask(some: Sequence[RerankRequest], due: float | None) -> list[Choice | ModelError]:
            return self._ask(some, due, trial)

        if not requests or not budget.is_timed:
            return iter(ask(requests, None))
        with suppress(ModelError):  # raised again, and told, where the first photo is asked about
            within_deadline(self.load, budget.first_end(requests), self.model)
        return asked_in_time(passes(requests, self.max_batch_size, self.permutations), budget, ask)

    def _ask(
        self, requests: Sequence[RerankRequest], due: float | None, trial: RerankTrial | None
    ) -> list[Choice | ModelError]:
        """What the model makes of each, or why it could not be asked."""
        if not requests:
            return []

        def answers() -> list[Choice | ModelError]:
            self._test()
            cases = [self.case(request, due) for request in requests]
            if not all(map(self.comparable, cases)):
                raise ModelError("the index has no other photo of a candidate to compare with")
            return [_unbiased(choice, self.strategy, trial) for choice in self.choices(cases)]

        try:
            return within_deadline(answers, due, self.model)
        except (OutOfTimeError, ModelUnavailableError) as error:  # the others would fare no better
            return [error] * len(requests)
        except ModelError as error:
            if len(requests) > 1:  # one bad picture must not cost the others their answer
                return [answer for request in requests for answer in self._ask([request], due, trial)]
            return [error]

    def _test(self) -> None:
        if self.self_test and (
            fault := self_test_fault(self.model, self.strategy, self.max_batch_size, self.twin)
        ):
            raise ModelUnavailableError(fault)

    def _photos_of(self, request: RerankRequest, label: str, below: float) -> tuple[Image.Image, ...]:
        """The nearest photos of a label, scaled down."""
        if self.index is None or self.corpus_root is None:
            raise AssertionError("exemplars without an index are refused")
        seen = request.sample.embeddings
        try:
            photos = nearest_of_label(
                self.index, self.corpus_root, seen, request.region, label, self.exemplars, below
            )
        except ImageError as error:
            raise ModelError(f"no photo of {label!r} can be shown: {error}; check corpus_root") from error
        return tuple(shrunk(photo, _EXEMPLAR_PIXELS) for photo in photos)


def _unbiased(choice: Choice, strategy: PromptStrategy, trial: RerankTrial | None) -> Choice:
    """The choice less what the places of the options got them, where a trial has found that out."""
    prior = trial.prior.get(len(choice.options)) if trial else None
    if prior is None:
        return choice
    return Choice(choice.options, strategy.without(prior, choice.log_likelihoods))
