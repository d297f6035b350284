"""Choosing the head and the novelty score on simulated queries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score, roc_auc_score

from lmm_classifier.calibration.leave_out import Fold, LeaveOutSimulation
from lmm_classifier.decision.decider import Decider, encoders_needed
from lmm_classifier.decision.heads import (
    FUSION,
    HEADS,
    OF_NEIGHBOURS,
    HeadSettings,
    head_probabilities,
    log_probabilities,
)
from lmm_classifier.decision.novelty import (
    FROM_NEIGHBOURS,
    FROM_REFERENCE,
    OF_TWO_LABELS,
    Combination,
    novelty_scores,
)
from lmm_classifier.decision.reference import Reference
from lmm_classifier.errors import CorpusError
from lmm_classifier.types import Float64Array, FloatArray, IntArray

_VOTERS = (1, 3, 5, 10, 20, 50, 100)
_TEMPERATURES = (0.01, 0.02, 0.05, 0.07, 0.1, 0.2)
_BALANCES = (0.0, 0.5, 1.0)
_MOST_WEIGHT = 10.0  # of a head: where every simulated answer is right, no weight is large enough
_LEAST_SPREAD = 1e-7  # of a score; less is rounding
# Times as many images in the largest label as in the smallest, from which balances are tried
_IMBALANCE = 1.5


@dataclass(frozen=True, slots=True)
class HeadScore:
    """How a head did on the simulated queries.

    Attributes:
        accuracy: share of right answers.
        macro_accuracy: mean over the labels of the share of their images that are answered right.
        log_loss: mean negative log-probability of the true label, in nats; what the choice goes by.
    """

    accuracy: float
    macro_accuracy: float
    log_loss: float


def _choose_head(
    simulation: LeaveOutSimulation, encoders: int, only: str | None, temperature: float | None
) -> tuple[HeadSettings, dict[str, HeadScore]]:
    """The settings with the lowest log loss, and how each head did.

    Args:
        simulation: the queries.
        encoders: of the index.
        only: the one head, or `FUSION`, to use; None chooses.
        temperature: of the vote; None chooses.
    """
    settings = _tuned_vote(simulation, temperature)
    settings = _tuned_prototypes(simulation, settings)
    names = [name for name in HEADS if name in OF_NEIGHBOURS]
    names += [
        _numbered(name, number)
        for name, number in product(HEADS, range(encoders))
        if name not in OF_NEIGHBOURS
    ]
    logs = {
        name: log_probabilities(_probabilities(simulation, replace(settings, weights={name: 1.0})))
        for name in names
    }
    options: dict[str, tuple[str, ...]] = {name: (name,) for name in names} | {FUSION: tuple(names)}
    weighted = {
        option: _weighted([logs[name] for name in members], simulation.truths)
        for option, members in options.items()
    }
    report = {}
    for option, weights in weighted.items():
        tuned = replace(settings, weights=dict(zip(options[option], weights, strict=True)))
        report[option] = _score(_probabilities(simulation, tuned), simulation.truths)
    best = only or min(report, key=lambda option: report[option].log_loss)
    chosen = {name: w for name, w in zip(options[best], weighted[best], strict=True) if w > 0}
    if not chosen:
        raise CorpusError(f"head {best!r} tells the labels apart no better than chance; try another encoder")
    return replace(settings, weights=chosen), report


@dataclass(frozen=True, slots=True, eq=False)
class NoveltyChoice:
    """The chosen novelty score, and what led to it.

    Attributes:
        combination: fitted on all simulated queries.
        known, unknown: float64 (m,): what it makes of each image as known and as unknown, by a fit that has
            not seen its group of labels; `unknown` is empty with a single label.
        auroc: score -> AUROC between them, for each single score and for all together.
        chosen: which of these.
    """

    combination: Combination
    known: Float64Array
    unknown: Float64Array
    auroc: Mapping[str, float]
    chosen: str


LEARNED = "combination"


def _choose_novelty(
    simulation: LeaveOutSimulation, settings: HeadSettings, encoders: int, only: str | None
) -> NoveltyChoice:
    """The score with the highest AUROC between simulated knowns and unknowns.

    Args:
        simulation: the queries.
        settings: of the head, whose vote some scores use.
        encoders: of the index.
        only: the one score, or LEARNED, to use; None chooses.

    Raises:
        CorpusError: the scores are constant.
    """
    names = tuple(FROM_NEIGHBOURS)
    names += tuple(_numbered(name, number) for name, number in product(FROM_REFERENCE, range(encoders)))
    if np.count_nonzero(simulation.counts) < 3:  # without its own label an image has one left to compare with
        names = tuple(name for name in names if name.partition("#")[0] not in OF_TWO_LABELS)

    def scores_of(parts: Sequence[Fold]) -> FloatArray:
        return simulation.gather(
            parts, lambda part: novelty_scores(names, part.queries, part.references, settings)
        )

    known = scores_of(simulation.known)
    if not simulation.unknown:  # nothing to hold out, so nothing to learn from
        single = _only_nearest()
        values = single.known(known[:, [names.index(single.names[0])]])
        return NoveltyChoice(single, values, np.empty(0), {}, single.names[0])
    unknown = scores_of(simulation.unknown)
    varied = np.ptp(np.concatenate([known, unknown]), axis=0) > _LEAST_SPREAD
    if not varied.any():
        raise CorpusError("the encoder gives all images the same vector, so nothing can be calibrated")
    options = {name: [j] for j, name in enumerate(names) if varied[j]} | {
        LEARNED: list(np.flatnonzero(varied))
    }
    auroc = {name: _auroc(known[:, j], unknown[:, j]) for j, name in enumerate(names) if varied[j]}
    auroc[LEARNED] = _auroc(*_crossed(known[:, varied], unknown[:, varied], simulation.groups))
    chosen = only or max(auroc, key=lambda option: auroc[option])
    if chosen not in options:
        raise CorpusError(f"score {chosen!r} is the same for all images, so it tells nothing")
    columns = options[chosen]
    combination = _fitted([names[j] for j in columns], known[:, columns], unknown[:, columns])
    crossed = _crossed(known[:, columns], unknown[:, columns], simulation.groups)
    return NoveltyChoice(combination, *crossed, auroc, chosen)


@dataclass(frozen=True, slots=True, eq=False)
class Tuned:
    """Head and novelty score as chosen on a simulation.

    Attributes:
        heads: how each head did.
        novelty: the chosen score.
        decider: both, with the references of all images.
    """

    heads: dict[str, HeadScore]
    novelty: NoveltyChoice
    decider: Decider


def tune(
    simulation: LeaveOutSimulation,
    encoders: int,
    references: Callable[[int], tuple[Reference, ...]],
    *,
    head: str | None = None,
    score: str | None = None,
    temperature: float | None = None,
) -> Tuned:
    """Choose the head, then the novelty score.

    Args:
        simulation: the queries.
        encoders: of the index.
        references: gives those of the first so many encoders, fitted on all images.
        head: as `_choose_head` takes `only`.
        score: as `_choose_novelty` takes `only`.
        temperature: of the vote; None chooses.

    Raises:
        CorpusError: as both.
    """
    settings, heads = _choose_head(simulation, encoders, head, temperature)
    novelty = _choose_novelty(simulation, settings, encoders, score)
    used = encoders_needed([*settings.weights, *novelty.combination.names])
    calibrated = np.sort(novelty.known)
    decider = Decider(references(used), settings, simulation.depth, novelty.combination, calibrated)
    return Tuned(heads, novelty, decider)


def _numbered(name: str, encoder: int) -> str:
    return f"{name}#{encoder}" if encoder else name


def _probabilities(simulation: LeaveOutSimulation, settings: HeadSettings) -> FloatArray:
    return simulation.gather(
        simulation.known, lambda part: head_probabilities(part.queries, part.references, settings)
    )


def _tuned_vote(simulation: LeaveOutSimulation, temperature: float | None) -> HeadSettings:
    counts = simulation.counts[simulation.counts > 0]
    uneven = counts.max() > _IMBALANCE * counts.min()
    tried = [
        HeadSettings({"knn": 1.0}, k, t, balance)
        for k, t, balance in product(
            sorted({min(k, simulation.depth) for k in _VOTERS}),
            _TEMPERATURES if temperature is None else (temperature,),
            _BALANCES if uneven else _BALANCES[:1],
        )
    ]
    return min(tried, key=lambda settings: _log_loss(_probabilities(simulation, settings), simulation.truths))


def _tuned_prototypes(simulation: LeaveOutSimulation, settings: HeadSettings) -> HeadSettings:
    tried = [
        replace(settings, weights={"prototype": 1.0}, prototype_temperature=temperature)
        for temperature in _TEMPERATURES
    ]
    return min(tried, key=lambda settings: _log_loss(_probabilities(simulation, settings), simulation.truths))


def _weighted(logs: Sequence[FloatArray], truths: IntArray) -> list[float]:
    """Weights >= 0 of log-probabilities (m, c) whose softmax has the lowest log loss, which is convex."""
    stacked = np.stack(logs).astype(np.float64)  # (heads, m, c)
    true = stacked[:, np.arange(len(truths)), truths]  # (heads, m)

    def loss(weights: Float64Array) -> tuple[float, Float64Array]:
        total = log_softmax(np.tensordot(weights, stacked, 1), axis=1)
        expected = np.einsum("hmc,mc->hm", stacked, np.exp(total))
        return -float(total[np.arange(len(truths)), truths].mean()), (expected - true).mean(axis=1)

    start = np.full(len(logs), 1 / len(logs))
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, _MOST_WEIGHT)] * len(logs))
    return [float(weight) for weight in found.x]


def _log_loss(probabilities: FloatArray, truths: IntArray) -> float:
    true = probabilities[np.arange(len(truths)), truths].astype(np.float64)
    return float(-np.log(true.clip(1e-30)).mean())


def _score(probabilities: FloatArray, truths: IntArray) -> HeadScore:
    answers = probabilities.argmax(axis=1)
    return HeadScore(
        accuracy=float(np.mean(answers == truths)),
        macro_accuracy=float(recall_score(truths, answers, average="macro", labels=np.unique(truths))),
        log_loss=_log_loss(probabilities, truths),
    )


def _auroc(known: FloatArray | Float64Array, unknown: FloatArray | Float64Array) -> float:
    truth = np.repeat([True, False], [len(known), len(unknown)])
    return float(roc_auc_score(truth, np.concatenate([known, unknown])))


def _fitted(names: Sequence[str], known: FloatArray, unknown: FloatArray) -> Combination:
    both = np.concatenate([known, unknown]).astype(np.float64)
    means, scales = both.mean(axis=0), both.std(axis=0)
    scales = np.where(scales > _LEAST_SPREAD, scales, 1.0)  # constant here, if not over all groups
    truth = np.repeat([True, False], [len(known), len(unknown)])
    model = LogisticRegression(max_iter=1000).fit((both - means) / scales, truth)
    return Combination(
        names=tuple(names),
        means=tuple(means.tolist()),
        scales=tuple(scales.tolist()),
        weights=tuple(model.coef_[0].tolist()),
        bias=float(model.intercept_[0]),
    )


def _crossed(known: FloatArray, unknown: FloatArray, groups: IntArray) -> tuple[Float64Array, Float64Array]:
    """What fits that were not shown an image's group of labels make of both kinds (m, s); float64 (m,)."""
    names = [str(j) for j in range(known.shape[1])]
    results = np.empty((2, len(known)))
    for group in np.unique(groups):
        left_out = groups == group
        combination = _fitted(names, known[~left_out], unknown[~left_out])
        results[0, left_out] = combination.known(known[left_out])
        results[1, left_out] = combination.known(unknown[left_out])
    return results[0], results[1]


def _only_nearest() -> Combination:
    """Nothing but the similarity of the nearest neighbour, mapped to [0, 1]."""
    return Combination(("max_similarity",), (0.0,), (1.0,), (1.0,), 0.0)
