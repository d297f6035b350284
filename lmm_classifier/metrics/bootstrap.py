"""How far a figure might have come out otherwise: percentile intervals over resampled queries."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lmm_classifier.errors import ConfigError, CorpusError
from lmm_classifier.metrics.weighted import Counts, Floats

RESAMPLES = 1000  # Efron and Tibshirani 1993: enough for the ends of a 95 % interval
LEVEL = 0.95
_CELLS = 1_000_000  # of one block of resamples: 8 MB per array
Statistic = Callable[[Counts], Floats]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure, and the interval that holds LEVEL of what resamples of the same queries give."""

    value: float
    low: float
    high: float


def estimate(
    statistics: Mapping[str, Statistic],
    strata: Sequence[Hashable],
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Each statistic with its percentile interval.

    Queries are drawn with replacement within their stratum, so every resample has as many of each kind as
    there are; all statistics see the same resamples. One that is not defined on a resample (NaN) is taken
    over the others.

    Args:
        statistics: name -> function of counts (b, n) that returns (b,).
        strata: n kinds, such as known and unknown.
        resamples: how many, at least 1.
        level: share of them inside the interval, in (0, 1).
        seed: the same seed gives the same intervals.

    Raises:
        ConfigError: `resamples` or `level` is out of range.
        CorpusError: no queries.
    """
    if resamples < 1 or not 0 < level < 1:
        raise ConfigError(
            f"resamples must be at least 1 and level in (0, 1), they are {resamples} and {level}"
        )
    if not strata:
        raise CorpusError("there are no queries to draw from")
    found: dict[str, list[Floats]] = {name: [] for name in statistics}
    for counts in _resampled(strata, resamples, np.random.default_rng(seed)):
        for name, statistic in statistics.items():
            found[name].append(statistic(counts))
    once = np.ones((1, len(strata)))
    ends = ((1 - level) / 2, (1 + level) / 2)
    return {
        name: _interval(float(statistic(once)[0]), np.concatenate(found[name]), ends)
        for name, statistic in statistics.items()
    }


def _resampled(
    strata: Sequence[Hashable], resamples: int, generator: np.random.Generator
) -> Iterator[Counts]:
    n = len(strata)
    members: dict[Hashable, list[int]] = {}
    for row, stratum in enumerate(strata):
        members.setdefault(stratum, []).append(row)
    block = max(1, _CELLS // n)
    for start in range(0, resamples, block):
        b = min(block, resamples - start)
        counts = np.zeros((b, n))
        for rows in members.values():
            picked = generator.integers(0, len(rows), (b, len(rows)))
            places = picked + np.arange(b)[:, None] * len(rows)
            counts[:, rows] = np.bincount(places.ravel(), minlength=b * len(rows)).reshape(b, len(rows))
        yield counts


def _interval(value: float, resampled: Floats, ends: tuple[float, float]) -> Estimate:
    defined = resampled[~np.isnan(resampled)]
    if not defined.size:
        return Estimate(value, value, value)
    low, high = np.quantile(defined, ends)
    return Estimate(value, float(low), float(high))
