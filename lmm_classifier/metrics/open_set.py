"""How well a score tells known from unknown: AUROC, AUPR, FPR@95 and OSCR.

Conventions: a higher score means more known; known is the positive class; a query is accepted when its score
reaches the threshold, and the thresholds are the distinct scores, so tied queries are accepted together.
Every result is in [0, 1]. `counts` and the result's shape are as `columns` says.
"""

from __future__ import annotations

import numpy as np

from lmm_classifier.errors import ConfigError, CorpusError
from lmm_classifier.metrics.weighted import (
    Counts,
    Curve,
    Flags,
    Floats,
    Numbers,
    drawn,
    flags,
    numbers,
    ratio,
    summed,
)
from lmm_classifier.types import BoolArray

_KEPT = 0.95  # of the knowns: what FPR@95 is named after


def auroc(scores: Numbers, known: Flags, counts: Counts | None = None) -> Floats:
    """Probability that a known query scores higher than an unknown one; a tie counts half.

    .5 for constant scores. Fawcett 2006, "An introduction to ROC analysis".

    Args:
        scores: (n,).
        known: bool (n,).
        counts: (n,) or (b, n).

    Raises:
        ConfigError: scores that are not finite, or lengths that differ.
        CorpusError: no known or no unknown query.
    """
    column, positive, counts = _checked(scores, known, counts)
    accepted, false = _accepted(column, counts * positive), _accepted(column, counts * ~positive)
    return _area(false, accepted) / (accepted[..., -1] * false[..., -1])


def aupr_known(scores: Numbers, known: Flags, counts: Counts | None = None) -> Floats:
    """Average precision with known as the positive class: precision, weighted by the recall each cut adds.

    The step-wise sum of scikit-learn's `average_precision_score`, not the trapezoid, which promises points
    between the cuts that no threshold reaches (Davis and Goadrich 2006). Constant scores give the share of
    knowns. Arguments and errors as `auroc`.
    """
    column, positive, counts = _checked(scores, known, counts)
    return _average_precision(column, counts * positive, counts * ~positive)


def aupr_unknown(scores: Numbers, known: Flags, counts: Counts | None = None) -> Floats:
    """As `aupr_known` with unknown as the positive class, found by low scores."""
    column, positive, counts = _checked(scores, known, counts)
    return _average_precision(-column, counts * ~positive, counts * positive)


def fpr_at_kept(
    scores: Numbers, known: Flags, counts: Counts | None = None, *, kept: float = _KEPT
) -> Floats:
    """Share of the unknowns that are accepted at the highest threshold that accepts `kept` of the knowns.

    FPR@95 of Hendrycks and Gimpel 2017 for kept = .95: at least that share, never interpolated. Constant
    scores give 1. Arguments and errors as `auroc`; in addition a ConfigError for `kept` outside (0, 1].
    """
    if not 0 < kept <= 1:
        raise ConfigError(f"kept must be above 0 and at most 1, got {kept}")
    column, positive, counts = _checked(scores, known, counts)
    accepted, false = _accepted(column, counts * positive), _accepted(column, counts * ~positive)
    enough = accepted / accepted[..., -1:] >= kept
    cut = enough.argmax(axis=-1)[..., None]
    rate: Floats = np.take_along_axis(false / false[..., -1:], cut, axis=-1)[..., 0]
    return rate


def roc_curve(scores: Numbers, known: Flags) -> Curve:
    """Share of the unknowns (x) and of the knowns (y) accepted, from (0, 0) to (1, 1)."""
    column, positive, counts = _checked(scores, known, None)
    return Curve(*(_shares(_accepted(column, counts * kind)) for kind in (~positive, positive)))


def oscr_area(scores: Numbers, known: Flags, right: Flags, counts: Counts | None = None) -> Floats:
    """Area under `oscr_curve`, by trapezoids: at most the closed-set accuracy, which perfect scores reach.

    Constant scores give half of it. Arguments and errors as `auroc`; `right` as `oscr_curve` has it.
    """
    column, positive, counts = _checked(scores, known, counts)
    correct = positive & flags("right", right, len(column))
    accepted, false = _accepted(column, counts * correct), _accepted(column, counts * ~positive)
    return _area(false, accepted) / (summed(counts * positive) * false[..., -1])


def oscr_curve(scores: Numbers, known: Flags, right: Flags) -> Curve:
    """Open-set classification rate, Dhamija et al. 2018, "Reducing network agnostophobia".

    Args:
        scores: (n,).
        known: bool (n,).
        right: bool (n,): whether the best label is the true one, be the query accepted or not; what it says
            of unknowns does not count.

    Returns:
        x: share of the unknowns accepted; y: share of all knowns both accepted and labelled right. From
        (0, 0) to (1, closed-set accuracy). Knowns and unknowns of one score enter together, as in ROC, and
        the line between is straight; the paper lets tied unknowns in first.
    """
    column, positive, counts = _checked(scores, known, None)
    correct = positive & flags("right", right, len(column))
    hits = _accepted(column, counts * correct)
    return Curve(_shares(_accepted(column, counts * ~positive)), hits / positive.sum())


def _checked(scores: Numbers, known: Flags, counts: Counts | None) -> tuple[Floats, BoolArray, Counts]:
    column = numbers("scores", scores)
    positive = flags("known", known, len(column))
    for kind, name in ((positive, "known"), (~positive, "unknown")):
        if not kind.any():
            raise CorpusError(f"there is no {name} query, so known and unknown cannot be told apart")
    return column, positive, drawn(counts, len(column))


def _accepted(scores: Floats, counts: Counts) -> Floats:
    """Counts accepted at each distinct score, highest first, after none at all: (..., 1 + distinct)."""
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    sums = np.cumsum(counts[..., order], axis=-1)[..., last]
    return np.concatenate([np.zeros((*sums.shape[:-1], 1)), sums], axis=-1)


def _area(x: Floats, y: Floats) -> Floats:
    return summed(np.diff(x, axis=-1) * (y[..., 1:] + y[..., :-1])) / 2


def _average_precision(scores: Floats, positive: Counts, negative: Counts) -> Floats:
    hits, false = _accepted(scores, positive), _accepted(scores, negative)
    precision = np.nan_to_num(ratio(hits, hits + false))
    return summed(np.diff(hits, axis=-1) * precision[..., 1:]) / hits[..., -1]


def _shares(accepted: Floats) -> Floats:
    return accepted / accepted[..., -1:]
