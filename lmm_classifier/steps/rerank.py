"""uncertain verdicts -> verdicts, by a vision-language model."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar, Self

import numpy as np
from PIL import Image
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from lmm_classifier import registry
from lmm_classifier.decision.fusion import certainty, reconsidered, retrieval_probabilities
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
from lmm_classifier.types import UNKNOWN, Choice, Float64Array, Sample, Scores, Verdict, required

log = logging.getLogger(__name__)

SERVERS = frozenset({"openai_api"})  # families that ask a model elsewhere
EXEMPLAR_PIXELS = 448 * 448  # 256 visual tokens of Qwen2-VL: enough to tell kinds apart, not to fill a prompt


@plain_dataclass(frozen=True, slots=True, eq=False)
class RerankRequest:
    """An uncertain region on its way to the model.

    Attributes:
        sample: whose region it is.
        place: number of the sample.
        region: number of the region.
        crop: its pixels.
        options: what it may be, in the order presented.
        certainty: of retrieval that its answer is right, in (0, 1].
    """

    sample: Sample
    place: int
    region: int
    crop: Image.Image
    options: tuple[str, ...]
    certainty: float


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
            least; the most doubtful ones are.
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
        if problem := contradiction(self.strategy, self.exemplars, self.model.family in SERVERS):
            raise ValueError(problem)
        if self.exemplars and (self.index is None or self.corpus_root is None):
            raise ValueError("exemplars are photos of the index: set index, and corpus_root to their folder")
        if self.corpus_root is not None and not self.exemplars:
            raise ValueError("corpus_root is for exemplars: set how many, or leave it out")
        if self.twin and not (self.self_test and self.model.family in SERVERS):
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
        rerank_requests = [
            request for i, sample in enumerate(batch) for request in self.rerank_requests(sample, i)
        ]
        trial = self.trial() if rerank_requests else None
        fusion = trial.fusion if trial else None
        results = self.results(rerank_requests, trial, sum(map(len, verdicts)))
        for request, result in zip(rerank_requests, results, strict=True):
            old = replace(verdicts[request.place][request.region], certainty=request.certainty)
            if isinstance(result, str):
                new = replace(old, rerank_skipped=result)
            elif isinstance(result, ModelError):  # fail open, visibly: retrieval's answer is still one
                new = replace(old, degraded=f"rerank: {result}")
            else:
                retrieval = _retrieval(result.options, required(request.sample.scores), request.region)
                new = reconsidered(old, result, retrieval, fusion, self.allow_unknown)
                new = replace(new, decided_by=self.name)
                choices[request.place][request.region] = result
            verdicts[request.place][request.region] = new
        return [
            replace(sample, verdicts=tuple(v), choices=tuple(c))
            for sample, v, c in zip(batch, verdicts, choices, strict=True)
        ]

    def rerank_requests(self, sample: Sample, place: int = 0) -> Iterator[RerankRequest]:
        """The regions of a sample that the model may be asked about; `place` is its number."""
        crops, scores = sample.crops(), required(sample.scores)
        for i, verdict in enumerate(required(sample.verdicts)):
            if verdict.status == "uncertain" and verdict.route != "review":
                options = self._options(crops[i], scores, i, verdict)
                if len(options) > 1:  # a single answer needs no asking
                    own = options.index(required(verdict.label))
                    sure = certainty(_retrieval(options, scores, i), own)
                    yield RerankRequest(sample, place, i, crops[i], options, sure)

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
        self, rerank_requests: Sequence[RerankRequest], trial: RerankTrial | None, regions: int
    ) -> list[Choice | ModelError | str]:
        """Per doubt, what the model makes of it, why it could not be asked, or why it was not."""
        started = time.monotonic()
        results: dict[int, Choice | ModelError | str] = {}
        for i, request in enumerate(rerank_requests):
            if trial and (reason := _not_worth_it(trial, request)):
                results[i] = reason
        left = sorted(
            (i for i in range(len(rerank_requests)) if i not in results),
            key=lambda i: rerank_requests[i].certainty,
        )
        if self.max_share is not None:
            most = max(math.floor(self.max_share * regions + 1e-9), 1)  # .29 of 100 are 29 in decimals
            results |= dict.fromkeys(left[most:], f"{most} of {regions} photos were more doubtful")
            left = left[:most]
        asked = [rerank_requests[i] for i in left]
        results |= zip(left, self._answers(asked, trial, started), strict=True)
        if failed := [result for result in results.values() if isinstance(result, ModelError)]:
            log.warning("rerank failed for %d of %d uncertain regions: %s", len(failed), len(left), failed[0])
        return [results[i] for i in range(len(rerank_requests))]

    def _answers(
        self, rerank_requests: Sequence[RerankRequest], trial: RerankTrial | None, started: float
    ) -> Iterator[Choice | ModelError | str]:
        if not rerank_requests or (self.max_seconds is None and self.deadline is None):
            yield from self._ask(rerank_requests, None, trial)
            return
        ends = [self._due(request, started)[0] for request in rerank_requests]
        with suppress(ModelError):  # raised again, and told, where the first photo is asked about
            within_deadline(
                self.load, min((end for end in ends if end > started), default=started), self.model
            )
        last = 0.0  # seconds of a pass: of questions alone, the model is open
        for run in self._runs(rerank_requests):
            begun = time.monotonic()
            due_of = {id(request): self._due(request, started) for request in run}
            waited = [request for request in run if begun + last <= due_of[id(request)][0]]
            due = min((due_of[id(request)][0] for request in waited), default=begun)
            given: list[Choice | ModelError] = self._ask(waited, due, trial)
            answers: dict[int, Choice | ModelError | str] = dict(zip(map(id, waited), given, strict=True))
            last = time.monotonic() - begun if waited else last
            for request in run:
                answer = answers.get(id(request), due_of[id(request)][1])
                yield due_of[id(request)][1] if isinstance(answer, OutOfTimeError) else answer

    def _ask(
        self, rerank_requests: Sequence[RerankRequest], due: float | None, trial: RerankTrial | None
    ) -> list[Choice | ModelError]:
        """What the model makes of each, or why it could not be asked."""
        if not rerank_requests:
            return []

        def answers() -> list[Choice | ModelError]:
            self._test()
            cases = [self.case(request, due) for request in rerank_requests]
            if not all(map(self.comparable, cases)):
                raise ModelError("the index has no other photo of a candidate to compare with")
            return [_unbiased(choice, self.strategy, trial) for choice in self.choices(cases)]

        try:
            return within_deadline(answers, due, self.model)
        except (OutOfTimeError, ModelUnavailableError) as error:  # the others would fare no better
            return [error] * len(rerank_requests)
        except ModelError as error:
            if len(rerank_requests) > 1:  # one bad picture must not cost the others their answer
                return [answer for request in rerank_requests for answer in self._ask([request], due, trial)]
            return [error]

    def _runs(self, rerank_requests: Sequence[RerankRequest]) -> Iterator[Sequence[RerankRequest]]:
        """Doubts that fill a forward pass each: at most so many (image, candidate) pairs, or one doubt."""
        run: list[RerankRequest] = []
        pairs = 0
        for request in rerank_requests:
            more = len(request.options) * self.permutations
            if run and pairs + more > self.max_batch_size:
                yield run
                run, pairs = [], 0
            run.append(request)
            pairs += more
        if run:
            yield run

    def _due(self, request: RerankRequest, started: float) -> tuple[float, str]:
        """When nobody waits for the answer any more, on `time.monotonic`, and why."""
        ends = [(math.inf, "")]
        if self.max_seconds is not None:
            ends.append((started + self.max_seconds, f"the {self.max_seconds:g} s for this batch were up"))
        if self.deadline is not None:
            ends.append((request.sample.arrived + self.deadline, f"its {self.deadline:g} s were up"))
        return min(ends)

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
        return tuple(shrunk(photo, EXEMPLAR_PIXELS) for photo in photos)

    def _options(self, crop: Image.Image, scores: Scores, region: int, verdict: Verdict) -> tuple[str, ...]:
        """What the model may answer, in an order seeded by the image: rank order would give rank 1 away.

        The labels that remain possible where the policy names them, else the best ones; the answer that
        stands is one of them.
        """
        none = {UNKNOWN} if self.allow_unknown else set[str]()
        ranked = np.argsort(-scores.values[region], kind="stable")[: self.max_candidates]
        possible = verdict.candidates
        labels = set(possible) - none or {scores.labels[j] for j in ranked}
        options = sorted(labels | {required(verdict.label)})
        if self.allow_unknown and UNKNOWN not in options and (not possible or UNKNOWN in possible):
            options.append(UNKNOWN)
        seed = hashlib.sha256(np.ascontiguousarray(crop).data).digest()
        order = np.random.default_rng(list(seed)).permutation(len(options))
        return tuple(options[j] for j in order)


def _unbiased(choice: Choice, strategy: PromptStrategy, trial: RerankTrial | None) -> Choice:
    """The choice less what the places of the options got them, where a trial has found that out."""
    prior = trial.prior.get(len(choice.options)) if trial else None
    if prior is None:
        return choice
    return Choice(choice.options, strategy.without(prior, choice.log_likelihoods))


def _retrieval(options: Sequence[str], scores: Scores, region: int) -> Float64Array:
    """What retrieval gives the options of a region, float64 (options,)."""
    closeness = float(scores.closeness[region])
    return retrieval_probabilities(options, scores.labels, scores.values[region], closeness)


def _not_worth_it(trial: RerankTrial, request: RerankRequest) -> str | None:
    """Why the calibration says not to ask about this region."""
    label = required(request.sample.verdicts)[request.region].label
    if not trial.helps:
        return f"it corrects {trial.corrections} and spoils {trial.regressions} of {trial.cases} photos here"
    if label in trial.not_for:
        return f"it spoils more photos of {label!r} than it corrects"
    if request.certainty >= trial.ask_below:
        return f"retrieval is sure enough, {request.certainty:.3f}: asking pays below {trial.ask_below:.3f}"
    return None
