"""Columns of measurements: one entry per query, checked where they enter a metric, counted as often as drawn.

Axes: n queries, b resamples. Every metric takes `counts`, float64 (n,) or (b, n): how often each query
counts, a whole number. Left out, each counts once. The result has the shape of `counts` without its last
axis, () or (b,), so one formula serves the figure itself and all resamples of a bootstrap at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lmm_classifier.errors import ConfigError, CorpusError
from lmm_classifier.types import BoolArray, IntArray

Floats = npt.NDArray[np.float64]
Counts = Floats
Numbers = Sequence[float] | npt.NDArray[np.floating]
Flags = Sequence[bool] | BoolArray


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Points of a line, in order: x and y, float64 (p,), both shares in [0, 1]."""

    x: Floats
    y: Floats


class Ranking:
    """Queries by falling value, those of equal value together.

    Attributes:
        answers: (..., 1 + distinct): how many there are down to each distinct value; 0 first.
    """

    def __init__(self, column: Floats, counts: Counts) -> None:
        self._order = np.argsort(-column, kind="stable")
        self._last = np.flatnonzero(np.append(np.diff(column[self._order]) != 0, True))
        self.answers = self.sums(counts)

    def sums(self, values: Floats) -> Floats:
        """Sum of something per query (..., n) down to each distinct value, 0 first: (..., 1 + distinct)."""
        sums = np.cumsum(values[..., self._order], axis=-1)[..., self._last]
        return np.concatenate([np.zeros((*sums.shape[:-1], 1)), sums], axis=-1)

    def among(self, sums: Floats, answered: Floats) -> Floats:
        """`sums` at a number of answers; between two values on the straight line, the mean order."""
        if sums.ndim == 1:
            return np.interp(answered, self.answers, sums)
        rows = zip(answered, self.answers, sums, strict=True)
        return np.stack([np.interp(wanted, answers, row) for wanted, answers, row in rows])


def numbers(name: str, values: Numbers) -> Floats:
    """One number per query, float64 (n,).

    Raises:
        ConfigError: not one-dimensional, or NaN or infinite.
        CorpusError: empty.
    """
    column = np.asarray(values, np.float64)
    if column.ndim != 1:
        raise ConfigError(f"{name} must be (n,), got {column.shape}")
    if not column.size:
        raise CorpusError(f"{name} is empty, so nothing can be measured")
    if not np.isfinite(column).all():
        row = int(np.flatnonzero(~np.isfinite(column))[0])
        raise ConfigError(f"{name} must be finite, entry {row} is {column[row]}")
    return column


def probabilities(name: str, values: Numbers) -> Floats:
    """As `numbers`, each in [0, 1].

    Raises:
        ConfigError, CorpusError: as `numbers`, or one lies outside.
    """
    column = numbers(name, values)
    if column.min() < 0 or column.max() > 1:
        raise ConfigError(
            f"{name} must lie between 0 and 1, they reach from {column.min()} to {column.max()}"
        )
    return column


def flags(name: str, values: Flags, n: int) -> BoolArray:
    """One yes or no per query, bool (n,).

    Raises:
        ConfigError: not n of them, or not booleans.
    """
    column = np.asarray(values)
    if column.shape != (n,):
        raise ConfigError(f"{name} must be ({n},) as the others are, got {column.shape}")
    if column.dtype != np.bool_:
        raise ConfigError(f"{name} must be booleans, got {column.dtype}")
    return column


def drawn(counts: Counts | None, n: int) -> Counts:
    """The counts, or once each.

    Raises:
        ConfigError: not (n,) or (b, n).
    """
    if counts is None:
        return np.ones(n)
    if counts.shape[-1:] != (n,) or counts.ndim > 2:
        raise ConfigError(f"counts must be ({n},) or (b, {n}), got {counts.shape}")
    return counts


def totals(codes: IntArray, size: int, counts: Counts) -> Floats:
    """Sum of the counts of each code 0..size-1: float64 (..., size)."""
    rows = [np.bincount(codes, row, size) for row in counts.reshape(-1, counts.shape[-1])]
    return np.reshape(rows, (*counts.shape[:-1], size))


def share(hit: BoolArray, among: BoolArray | None = None, counts: Counts | None = None) -> Floats:
    """Share of the queries `among` that are a `hit`, (...); NaN where none of them was drawn."""
    counts = drawn(counts, len(hit))
    weights = counts if among is None else counts * among
    return ratio(summed(weights * hit), summed(weights))


def ratio(part: Floats, whole: Floats) -> Floats:
    """One divided by the other, NaN where the whole is 0."""
    empty = np.full(np.shape(part), np.nan)
    quotient: Floats = np.divide(part, whole, out=empty, where=np.asarray(whole) > 0)
    return quotient


def summed(values: Floats) -> Floats:
    """Sum over the last axis."""
    total: Floats = values.sum(axis=-1)
    return total
