"""One classifier from the training items of one collection: fit, calibrate, choose a threshold.

Nothing here sees a held-out item.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from lmm_classifier.collection.estimators import (
    SEED,
    DoubleArray,
    Estimator,
    Linear,
    probabilities,
    to_linear,
)
from lmm_classifier.types import BoolArray, FloatArray

_FOLDS = 5
_NO_PENALTY = 1e10  # C of a logistic regression on one number: Platt's own method has no penalty


@dataclass(frozen=True, slots=True, eq=False)
class CalibratedModel:
    """A model, and how its scores become decisions. Fields as `ClassifierArtifact` has them."""

    model: Linear
    slope: float
    offset: float
    threshold: float
    abstain: tuple[float, float] | None

    @property
    def calibration(self) -> str:
        return "none" if (self.slope, self.offset) == (1.0, 0.0) else "platt"


def fit(
    vectors: FloatArray | DoubleArray,
    labels: BoolArray,
    estimator: Estimator,
    threshold: float | None = None,
    abstain: float | None = None,
) -> CalibratedModel:
    """Fit on all items given; calibrate and choose the threshold on cross-validated predictions of them.

    Args:
        vectors: float32 (n, d).
        labels: bool (n,), of both classes.
        estimator: what to fit.
        threshold: in [0, 1]; None takes the one with the best F1 in cross-validation.
        abstain: half the width of the band around the threshold in which nothing is said; None: no band.
    """
    vectors = vectors.astype(np.float64)  # liblinear computes in it anyway
    fitted = estimator.make().fit(vectors, labels)
    folds = min(_FOLDS, int(labels.sum()), int((~labels).sum()))
    slope, offset, cut = 1.0, 0.0, 0.5
    if folds > 1:  # a single example of a class cannot be both learnt from and predicted
        scores = _cross_validated(estimator.make(), vectors, labels, folds)
        slope, offset = platt(scores, labels)
        cut = best_f1_cut(probabilities(scores, slope, offset), labels)
    cut = cut if threshold is None else threshold
    band = None if abstain is None else (max(cut - abstain, 0.0), min(cut + abstain, 1.0))
    return CalibratedModel(to_linear(fitted), slope, offset, cut, band)


def platt(scores: DoubleArray, labels: BoolArray) -> tuple[float, float]:
    """Slope and offset that make scores probabilities, as Platt (1999) fits them.

    His targets are not quite 0 and 1, so the fit stays finite where the scores separate the classes. Each
    item counts twice, as a yes and as a no, with weights that add up to 1.
    """
    n, positive = len(labels), int(labels.sum())
    yes = np.where(labels, (positive + 1) / (positive + 2), 1 / (n - positive + 2))
    regression = LogisticRegression(C=_NO_PENALTY, max_iter=1000)
    column = np.concatenate([scores, scores])[:, None]
    regression.fit(column, np.repeat([1, 0], n), sample_weight=np.concatenate([yes, 1 - yes]))
    return float(regression.coef_[0, 0]), float(regression.intercept_[0])


def best_f1_cut(p: DoubleArray, labels: BoolArray) -> float:
    """The threshold with the largest F1: half way between two neighbouring probabilities.

    Of equals, the one that is nearest to .5, then the lower.
    """
    order = np.argsort(-p, kind="stable")
    hits = np.cumsum(labels[order])
    f1 = 2 * hits / (np.arange(1, len(p) + 1) + labels.sum())
    ranked = p[order]
    below = np.append(ranked[1:], 0.0)
    cuts = (ranked + below) / 2
    usable = ranked > below  # equal probabilities cannot be cut apart
    best = f1[usable].max()
    among = cuts[usable][f1[usable] >= best - 1e-12]
    return float(min(among, key=lambda cut: (abs(cut - 0.5), cut)))


def _cross_validated(
    estimator: Any, vectors: FloatArray | DoubleArray, labels: BoolArray, folds: int
) -> DoubleArray:
    """The score of each item by a classifier that has not seen it."""
    split = StratifiedKFold(folds, shuffle=True, random_state=SEED)
    found = cross_val_predict(estimator, vectors, labels, cv=split, method="decision_function")
    return np.asarray(found, np.float64)
