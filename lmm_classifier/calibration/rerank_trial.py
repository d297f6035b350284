"""Does the reranker help on this corpus? Tried on photos of the index, simulated as known and as unknown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax
from scipy.stats import binomtest

from lmm_classifier.calibration.position_bias import ListBias
from lmm_classifier.corpus.images import DEFAULT_LIMITS, ImageLimits, open_image
from lmm_classifier.decision.fusion import Fusion, certainty, decided, fused_logits
from lmm_classifier.decision.gates import Gates, route
from lmm_classifier.errors import CorpusError, ImageError
from lmm_classifier.index.calibration import RerankTrial
from lmm_classifier.index.exemplars import COPY
from lmm_classifier.models.vlm.strategies import Case
from lmm_classifier.rerank.requests import RerankRequest
from lmm_classifier.steps.rerank import Rerank
from lmm_classifier.types import UNKNOWN, Choice, Float64Array, FloatArray, Sample, Scores, Verdict, required

_MOST_CASES = 400
"""Images asked, at most, half of them as unknown: the standard error of a share of so many is 2.5 points."""
_AT_ONCE = 32  # photos held in memory
_FOLDS = 5
_PRIOR = 10.0
"""Cases that the prior weights count as: of few cases the fusion stays near the product of both opinions."""
_SCARCE = 15
"""Cases below which weights are not fitted: 5 for each of the three, as few as a regression is given."""
_WORTH = 0.9  # of what asking about all cases gains, which those that are asked about keep
_POINTS = 20  # of the curve
_MARGINS = (0.0, 0.5, 1.0, 2.0, 4.0)
_REGRESSIONS = 1 / 3  # of the corrections, at most
_LEVEL = 0.05  # of the sign test that corrections outnumber regressions
_FEWEST_CHANGES = 5  # of a label, before it is left out for more regressions than corrections


@dataclass(frozen=True, slots=True, eq=False)
class TrialPhoto:
    """A photo of the index.

    Attributes:
        path: its file.
        truth: its label, or UNKNOWN.
        embeddings: gives encoder fingerprint -> float32 (1, d).
    """

    path: Path
    truth: str
    embeddings: Callable[[], Mapping[str, FloatArray]]


@dataclass(frozen=True, slots=True, eq=False)
class TrialCase:
    """An uncertain photo that the model was asked about.

    Attributes:
        truth: its label, or UNKNOWN.
        best: retrieval's answer.
        choice: the model's.
        retrieval: float64 (options,), retrieval's probabilities.
    """

    truth: str
    best: str
    choice: Choice
    retrieval: Float64Array


def try_reranker(
    step: Rerank,
    photos: Sequence[TrialPhoto],
    known: Scores,
    unknown: Scores,
    gates: Gates,
    near: float,
    seed: int,
    limits: ImageLimits = DEFAULT_LIMITS,
) -> RerankTrial:
    """Ask the model about uncertain photos, fit the fusion, and see whether it pays.

    Args:
        step: the reranker, as configured.
        photos: m of the index.
        known: scores over m regions, simulated as known.
        unknown: the same as unknown; may be empty.
        gates: which of them are uncertain.
        near: similarity from which two photos of the index are the same one, as when they were simulated: it
            would be no other photo to compare with.
        seed: of the sample.
        limits: of the photos.

    Raises:
        CorpusError: a photo cannot be read.
        ModelError: the reranker failed.
    """
    rng = np.random.default_rng(seed)
    plain = replace(step, calibration=None, max_seconds=None, deadline=None, max_share=None)
    asked = chain(
        _uncertain(photos, known, gates, rng, plain.resolution(), limits),
        _uncertain(
            [replace(photo, truth=UNKNOWN) for photo in photos],
            unknown,
            gates,
            rng,
            plain.resolution(),
            limits,
        ),
    )
    cases, bias = _opinions(plain, asked, near, rng)
    folds = rng.permutation(len(cases)) % _FOLDS
    margins: dict[float, list[str]] = {margin: [""] * len(cases) for margin in _MARGINS}
    for fold in range(_FOLDS if cases else 0):
        fitted = fit_fusion([case for case, f in zip(cases, folds, strict=True) if f != fold])
        for i in np.flatnonzero(folds == fold).tolist():
            for margin in _MARGINS:
                margins[margin][i] = answer_of(replace(fitted, margin=margin), cases[i])
    return replace(_judged(step, cases, margins), prior=bias.prior(), flip_rate=bias.flip_rate())


def _opinions(
    step: Rerank, samples: Iterator[Sample], near: float, rng: np.random.Generator
) -> tuple[list[TrialCase], ListBias]:
    """What the model makes of the samples, less what the places in its lists got them."""
    cases: list[TrialCase] = []
    bias = ListBias(step, rng)
    while batch := list(islice(samples, _AT_ONCE)):
        shown = list(_shown(step, batch, near))
        choices = step.choices([case for _, case in shown])
        cases += map(_case, (request for request, _ in shown), choices)
        bias.look_at([case for _, case in shown])
    prior = bias.prior()
    return [_without(prior, step, case) for case in cases], bias


def fit_fusion(cases: Sequence[TrialCase]) -> Fusion:
    """The weights with the lowest log loss, drawn to (1, 1, 0) by PRIOR cases' worth.

    Of fewer than SCARCE cases that have the right option there are no weights: each opinion counts by how
    decided it is.
    """
    inside = [case for case in cases if case.truth in case.choice.options]
    if len(inside) < _SCARCE:
        return Fusion(scarce=True)

    def loss(weights: Float64Array) -> float:
        fusion = Fusion(*weights.tolist())
        total = sum(
            -log_softmax(fused_logits(fusion, case.choice, case.retrieval))[
                case.choice.options.index(case.truth)
            ]
            for case in inside
        )
        return float(total + _PRIOR / 2 * np.sum((weights - [1.0, 1.0, 0.0]) ** 2))

    bounds = [(0, 10), (0, 10), (-10, 10)]
    return Fusion(*minimize(loss, [1.0, 1.0, 0.0], method="L-BFGS-B", bounds=bounds).x.tolist())


def answer_of(fusion: Fusion, case: TrialCase) -> str:
    """What both together answer."""
    logits = fused_logits(fusion, case.choice, case.retrieval)
    return case.choice.options[decided(fusion, logits, case.choice.options.index(case.best))]


def _judged(step: Rerank, cases: Sequence[TrialCase], margins: dict[float, list[str]]) -> RerankTrial:
    """The smallest margin at which regressions are few, and whether corrections surely outnumber them."""
    margin = next((m for m in _MARGINS if _few_regressions(cases, margins[m])), _MARGINS[-1])
    corrections, regressions = _changes(cases, margins[margin])
    changed = len(corrections) + len(regressions)
    helps = (
        bool(changed)
        and bool(binomtest(len(corrections), changed, alternative="greater").pvalue < _LEVEL)
        and len(regressions) <= _REGRESSIONS * len(corrections)
        and not _harms_knowns(cases, corrections, regressions)
    )
    labels = sorted({case.best for case in cases})
    worse = tuple(
        label
        for label in labels
        if (down := sum(cases[i].best == label for i in regressions))
        > (up := sum(cases[i].best == label for i in corrections))
        and up + down >= _FEWEST_CHANGES
    )
    ask_below, curve = worth_asking(cases, corrections, regressions)
    return RerankTrial(
        fusion=replace(fit_fusion(cases), margin=margin),
        helps=helps,
        not_for=worse,
        cases=len(cases),
        corrections=len(corrections),
        regressions=len(regressions),
        asked=step.identity,
        ask_below=ask_below,
        curve=curve,
    )


def worth_asking(
    cases: Sequence[TrialCase], corrections: Sequence[int], regressions: Sequence[int]
) -> tuple[float, tuple[tuple[float, float], ...]]:
    """The certainty of retrieval from which asking gains little, and accuracy by share asked about.

    The most doubtful cases first, as many as it takes to gain WORTH of what asking about all gains.
    """
    if not cases:
        return 1.0, ()
    sure = np.asarray([certainty(c.retrieval, c.choice.options.index(c.best)) for c in cases])
    change = np.zeros(len(cases))
    change[list(corrections)], change[list(regressions)] = 1, -1
    levels, of_level = np.unique(sure, return_inverse=True)  # cases as sure as each other go together
    counts = np.bincount(of_level)
    asked = np.concatenate([[0], np.cumsum(counts)])
    gained = np.concatenate([[0.0], np.cumsum(np.bincount(of_level, weights=change))])
    needed = int(np.argmax(gained >= _WORTH * gained[-1])) if gained[-1] > 0 else len(levels)
    right = sum(case.best == case.truth for case in cases)
    points = np.unique(np.linspace(0, len(levels), _POINTS + 1).round().astype(int)).tolist()
    curve = tuple((int(asked[m]) / len(cases), (right + float(gained[m])) / len(cases)) for m in points)
    return float(levels[needed]) if needed < len(levels) else 1.0, curve


def _harms_knowns(cases: Sequence[TrialCase], corrections: Sequence[int], regressions: Sequence[int]) -> bool:
    """Whether among knowns alone more is surely spoilt than corrected: unknowns may be rarer than here."""
    up, down = (sum(cases[i].truth != UNKNOWN for i in some) for some in (corrections, regressions))
    return up + down > 0 and bool(binomtest(down, up + down, alternative="greater").pvalue < _LEVEL)


def _few_regressions(cases: Sequence[TrialCase], answers: Sequence[str]) -> bool:
    corrections, regressions = _changes(cases, answers)
    return len(regressions) <= _REGRESSIONS * len(corrections)


def _changes(cases: Sequence[TrialCase], answers: Sequence[str]) -> tuple[list[int], list[int]]:
    """Which cases were corrected, and which made worse."""
    corrections, regressions = [], []
    for i, (case, answer) in enumerate(zip(cases, answers, strict=True)):
        if answer == case.truth != case.best:
            corrections.append(i)
        elif answer != case.truth == case.best:
            regressions.append(i)
    return corrections, regressions


def _shown(step: Rerank, batch: Sequence[Sample], near: float) -> Iterator[tuple[RerankRequest, Case]]:
    """What the model is shown of each sample; nothing of those that it would not be asked about."""
    for sample in batch:
        for request in step.requests(sample):
            case = step.case(request, below=min(near, COPY))
            if step.comparable(case):
                yield request, case


def _case(request: RerankRequest, choice: Choice) -> TrialCase:
    scores = required(request.sample.scores)
    best = scores.labels[int(scores.values[0].argmax())]
    return TrialCase(required(request.sample.truth), best, choice, request.retrieval)


def _without(prior: Mapping[int, Sequence[float]], step: Rerank, case: TrialCase) -> TrialCase:
    """The case, with the model's opinion less what the places of the options got them."""
    places = prior.get(len(case.choice.options))
    if places is None:
        return case
    values = step.strategy.without(places, case.choice.log_likelihoods)
    return replace(case, choice=Choice(case.choice.options, values))


def _uncertain(
    photos: Sequence[TrialPhoto],
    scores: Scores,
    gates: Gates,
    rng: np.random.Generator,
    pixels: int | None,
    limits: ImageLimits,
) -> Iterator[Sample]:
    """Samples of the photos that the gates send to the reranker, as they would arrive there."""
    if not len(scores.values):
        return
    routed = route(scores, gates)
    places = [i for i, r in enumerate(routed) if r.route == "rerank" and len(r.candidates) > 1]
    for i in sorted(rng.permutation(places)[: _MOST_CASES // 2].tolist()):
        try:
            image = open_image(photos[i].path, target_size=pixels, limits=limits)
        except ImageError as error:
            raise CorpusError(
                f"{photos[i].path}: {error.reason}; give the folder the index was built from"
            ) from error
        row, closeness = scores.values[[i]], scores.closeness[[i]]
        verdict = Verdict(
            "uncertain",
            scores.labels[routed[i].best],
            float(row.max()),
            "open_set",
            routed[i].reason,
            route="rerank",
            candidates=routed[i].candidates,
        )
        sample = Sample.from_image(str(photos[i].path), image, truth=photos[i].truth)
        yield replace(
            sample,
            embeddings=photos[i].embeddings(),
            scores=Scores(scores.labels, row, closeness),
            verdicts=(verdict,),
        )
