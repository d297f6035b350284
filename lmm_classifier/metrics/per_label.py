"""Which labels are told well: macro F1 and a row per label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import precision_recall_fscore_support

from lmm_classifier.errors import ConfigError, CorpusError
from lmm_classifier.metrics.weighted import Counts, Floats, drawn, ratio, totals
from lmm_classifier.types import UNKNOWN, IntArray


@dataclass(frozen=True, slots=True)
class LabelRow:
    """How one label fares, shares in [0, 1].

    Attributes:
        label: "unknown" for the photos of no label of the index.
        support: queries that show it.
        answered: queries it was the answer to.
        precision: share of those that show it; 0 where it was never answered.
        recall: share of the queries that show it that were answered so; 0 where none does.
        f1: harmonic mean of the two; 0 where both are.
        rejected: share of the queries that show it that were called unknown; 0 where none does.
    """

    label: str
    support: int
    answered: int
    precision: float
    recall: float
    f1: float
    rejected: float


def label_rows(truths: Sequence[str], answers: Sequence[str]) -> tuple[LabelRow, ...]:
    """A row per label that occurs, sorted, "unknown" last; the shares are scikit-learn's.

    Args:
        truths: n right answers.
        answers: n answers.

    Raises:
        ConfigError: lengths that differ.
        CorpusError: no queries.
    """
    names, truth, answer = _coded(truths, answers)
    precision, recall, f1, support = precision_recall_fscore_support(
        truth, answer, labels=np.arange(len(names)), zero_division=0
    )
    answered = np.bincount(answer, minlength=len(names))
    rejecting = answer == (names.index(UNKNOWN) if UNKNOWN in names else -1)
    rejected = np.bincount(truth[rejecting], minlength=len(names)) / np.maximum(support, 1)
    columns = zip(names, support, answered, precision, recall, f1, rejected, strict=True)
    return tuple(LabelRow(name, int(n), int(m), *map(float, shares)) for name, n, m, *shares in columns)


def macro_f1(truths: Sequence[str], answers: Sequence[str], counts: Counts | None = None) -> Floats:
    """Mean F1 over the labels that occur as truth, in [0, 1]; a rejected query is a miss of its label.

    scikit-learn's macro average over these labels. A label that a resample has no query of is left out of
    that resample's mean, unless it was answered: its F1 is then 0. Arguments and errors as `label_rows`;
    `counts` and the shape as `columns` says.
    """
    names, truth, answer = _coded(truths, answers)
    counts = drawn(counts, len(truth))
    hits = totals(truth, len(names), counts * (truth == answer))
    occurring = totals(truth, len(names), counts) + totals(answer, len(names), counts)
    f1 = ratio(2 * hits, occurring)[..., np.unique(truth)]
    mean: Floats = np.nanmean(f1, axis=-1)
    return mean


def _coded(truths: Sequence[str], answers: Sequence[str]) -> tuple[list[str], IntArray, IntArray]:
    """The names in order, and both columns as positions among them."""
    if len(truths) != len(answers):
        raise ConfigError(f"there are {len(truths)} truths and {len(answers)} answers; give one per query")
    if not truths:
        raise CorpusError("there are no answers, so nothing can be measured")
    names = sorted({*truths, *answers}, key=lambda name: (name == UNKNOWN, name))
    place = {name: code for code, name in enumerate(names)}
    truth, answer = (np.asarray([place[x] for x in column], np.int64) for column in (truths, answers))
    return names, truth, answer
