"""Whether the surer answers are the righter ones: risk and coverage, calibration error, Brier score.

Conventions: a higher confidence means surer; every result is in [0, 1]; risk is the share of wrong answers.
Answers of equal confidence come in no order: where a cut falls between them, the mean over all orders is
taken. `counts` and the result's shape are as `columns` says.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lmm_classifier.errors import ConfigError
from lmm_classifier.metrics.weighted import (
    Counts,
    Curve,
    Flags,
    Floats,
    Numbers,
    Ranking,
    drawn,
    flags,
    numbers,
    probabilities,
    ratio,
    summed,
    totals,
)
from lmm_classifier.types import BoolArray

_BINS = 15  # Guo et al. 2017, "On calibration of modern neural networks"


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Answers whose confidence lies in (low, high], 0 included in the first bin.

    Attributes:
        low, high: edges, in [0, 1].
        answers: how many.
        confidence, accuracy: their mean confidence and share of right answers; None where there are none.
    """

    low: float
    high: float
    answers: int
    confidence: float | None
    accuracy: float | None


def risk_coverage_curve(confidence: Numbers, right: Flags) -> Curve:
    """Risk (y) when only the surest share (x) is answered, at x = 1/n, 2/n, ..., 1.

    Args:
        confidence: (n,).
        right: bool (n,).

    Raises:
        ConfigError: confidences that are not finite, or lengths that differ.
        CorpusError: no answers.
    """
    column, hit, counts = _checked(confidence, right, None)
    answered = np.arange(1.0, len(column) + 1)
    return Curve(answered / len(column), 1 - _Surest(column, counts, hit).right_among(answered) / answered)


def aurc(confidence: Numbers, right: Flags, counts: Counts | None = None) -> Floats:
    """Area under the risk-coverage curve: the mean of the risks at coverage 1/n, 2/n, ..., 1.

    Geifman and El-Yaniv 2017, "Selective classification for deep neural networks"; lower is better. A
    constant confidence gives the share of wrong answers. Arguments and errors as `risk_coverage_curve`.
    """
    column, hit, counts = _checked(confidence, right, counts)
    surest = _Surest(column, counts, hit)
    n = round(float(surest.answers[..., -1].max()))
    harmonic = np.append(0, np.cumsum(1 / np.arange(1, n + 1)))  # [m] = 1 + 1/2 + ... + 1/m
    before, after = surest.answers[..., :-1], surest.answers[..., 1:]
    # Within a tie of g answers, h of them right, after N answers with R right, the accuracy at N + j is
    # (R + h j / g) / (N + j) = h / g + (R - N h / g) / (N + j), summed over j = 1..g.
    rate = np.nan_to_num(ratio(np.diff(surest.right, axis=-1), after - before))
    sums = harmonic[np.rint(after).astype(int)] - harmonic[np.rint(before).astype(int)]
    accuracies = rate * (after - before) + (surest.right[..., :-1] - before * rate) * sums
    return 1 - summed(accuracies) / surest.answers[..., -1]


def selective_accuracy(
    confidence: Numbers, right: Flags, coverage: float, counts: Counts | None = None
) -> Floats:
    """Share of right answers among the surest, of which at least a share `coverage` is answered.

    Arguments and errors as `risk_coverage_curve`; in addition a ConfigError for a coverage outside (0, 1].
    """
    if not 0 < coverage <= 1:
        raise ConfigError(f"coverage must be above 0 and at most 1, got {coverage}")
    column, hit, counts = _checked(confidence, right, counts)
    surest = _Surest(column, counts, hit)
    answered = np.ceil(surest.answers[..., -1:] * coverage - 1e-9)  # .9 of 10 is 9, not 10
    return (surest.right_among(answered) / answered)[..., 0]


def expected_calibration_error(
    confidence: Numbers, right: Flags, counts: Counts | None = None, *, bins: int = _BINS
) -> Floats:
    """ECE: mean gap between confidence and accuracy over bins of equal width, weighted by their answers.

    Naeini et al. 2015, with the bins of `ReliabilityBin`.

    Args:
        confidence: (n,), in [0, 1].
        right: bool (n,).
        counts: (n,) or (b, n).
        bins: number of bins.

    Raises:
        ConfigError: confidences outside [0, 1] or not finite, lengths that differ, or no bin.
        CorpusError: no answers.
    """
    edges = _edges(bins)
    column, hit, counts = _checked(probabilities("confidence", confidence), right, counts)
    codes = np.digitize(column, edges[1:-1], right=True).astype(np.int64)
    gaps = totals(codes, bins, counts * column) - totals(codes, bins, counts * hit)
    return summed(np.abs(gaps)) / summed(counts)


def adaptive_calibration_error(
    confidence: Numbers, right: Flags, counts: Counts | None = None, *, bins: int = _BINS
) -> Floats:
    """As `expected_calibration_error`, over bins that hold equally many answers.

    Nguyen and O'Connor 2015. In rising order of confidence the first n mod `bins` bins get one answer more
    than the others; with fewer answers than bins, each answer is a bin.
    """
    _edges(bins)
    column, hit, counts = _checked(probabilities("confidence", confidence), right, counts)
    rising = _Surest(-column, counts, hit)
    n = rising.answers[..., -1:]
    number = np.arange(bins + 1)
    ends = n // bins * number + np.minimum(number, n % bins)
    promised = rising.among(rising.sums(counts * column), ends)
    gaps = np.diff(promised - rising.right_among(ends), axis=-1)
    return summed(np.abs(gaps)) / n[..., 0]


def brier(confidence: Numbers, right: Flags, counts: Counts | None = None) -> Floats:
    """Mean squared difference between confidence and rightness (1 or 0) of the answer given; lower is better.

    Brier 1950, for the two outcomes "right" and "wrong". Arguments and errors as
    `expected_calibration_error`.
    """
    column, hit, counts = _checked(probabilities("confidence", confidence), right, counts)
    return summed(counts * (column - hit) ** 2) / summed(counts)


def reliability_bins(confidence: Numbers, right: Flags, *, bins: int = _BINS) -> tuple[ReliabilityBin, ...]:
    """What `expected_calibration_error` compares, bin by bin; arguments and errors as there."""
    edges = _edges(bins)
    column, hit, counts = _checked(probabilities("confidence", confidence), right, None)
    codes = np.digitize(column, edges[1:-1], right=True).astype(np.int64)
    answers = totals(codes, bins, counts)
    sums = zip(answers, totals(codes, bins, counts * column), totals(codes, bins, counts * hit), strict=True)
    return tuple(
        ReliabilityBin(
            float(edges[i]),
            float(edges[i + 1]),
            int(n),
            float(promised / n) if n else None,
            float(kept / n) if n else None,
        )
        for i, (n, promised, kept) in enumerate(sums)
    )


class _Surest(Ranking):
    """Answers by falling confidence.

    Attributes:
        right: (..., 1 + distinct): how many of `answers` are right.
    """

    def __init__(self, confidence: Floats, counts: Counts, right: BoolArray) -> None:
        super().__init__(confidence, counts)
        self.right = self.sums(counts * right)

    def right_among(self, answered: Floats) -> Floats:
        """Right answers among the surest `answered`, (..., m) -> (..., m)."""
        return self.among(self.right, answered)


def _checked(confidence: Numbers, right: Flags, counts: Counts | None) -> tuple[Floats, BoolArray, Counts]:
    column = numbers("confidence", confidence)
    return column, flags("right", right, len(column)), drawn(counts, len(column))


def _edges(bins: int) -> Floats:
    if bins < 1:
        raise ConfigError(f"there must be at least one bin, got {bins}")
    return np.linspace(0, 1, bins + 1)
