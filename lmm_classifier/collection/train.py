"""Training sets in, classifiers of a store out; what one collection does wrong is its own affair."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lmm_classifier.collection.artifact import ClassifierArtifact
from lmm_classifier.collection.estimators import LOGISTIC_REGRESSION, Estimator
from lmm_classifier.collection.fit import fit
from lmm_classifier.collection.publish import KEEP, FittedCandidate, publish
from lmm_classifier.collection.selection import Competitor, Metric
from lmm_classifier.collection.training_set import SkippedCollection, TrainingSet
from lmm_classifier.errors import CollectionError, LmmClassifierError
from lmm_classifier.storage.progress import OnProgress, Progress, ignore_progress
from lmm_classifier.types import BoolArray

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """How to train and choose.

    Attributes:
        estimators: each gives a version, and all compete.
        metric: figure on the held-out items that decides.
        threshold: probability from which a photo belongs; None: with the best F1 in cross-validation.
        abstain: half the width of the band around it in which nothing is said; None: no band.
        keep: versions of a collection that are kept.
    """

    estimators: tuple[Estimator, ...] = (LOGISTIC_REGRESSION,)
    metric: Metric = "macro_precision"
    threshold: float | None = None
    abstain: float | None = None
    keep: int = KEEP


@dataclass(frozen=True, slots=True)
class Trained:
    """A collection that was trained.

    Attributes:
        best: the version in use from now on; not always the newest.
        ranking: all that competed, best first.
        warnings: what to know about its training data.
    """

    best: ClassifierArtifact
    ranking: tuple[Competitor, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """What became of each collection of a source."""

    trained: tuple[Trained, ...]
    skipped: tuple[SkippedCollection, ...]


DEFAULTS = TrainOptions()


def train(
    source: Iterable[TrainingSet | SkippedCollection],
    store: str | Path,
    options: TrainOptions = DEFAULTS,
    on_progress: OnProgress = ignore_progress,
) -> TrainingReport:
    """Train a classifier per collection; each is in the store, whole, before the next one is begun.

    Raises:
        LmmClassifierError: the source as a whole cannot be read.
    """
    folder = Path(store).expanduser().absolute()
    trained: list[Trained] = []
    skipped: list[SkippedCollection] = []
    for item in source:
        result = _outcome(item, folder, options) if isinstance(item, TrainingSet) else item
        if isinstance(result, Trained):
            trained.append(result)
        else:
            log.warning("collection %s is skipped: %s", result.collection, result.reason)
            skipped.append(result)
        on_progress(Progress("training", len(trained) + len(skipped), None, len(skipped)))
    return TrainingReport(tuple(trained), tuple(skipped))


def _outcome(data: TrainingSet, folder: Path, options: TrainOptions) -> Trained | SkippedCollection:
    try:
        return _trained(data, folder, options)
    except LmmClassifierError as error:
        return SkippedCollection(data.collection, data.name, str(error))
    except Exception as error:
        log.info("collection %s failed", data.collection, exc_info=True)
        return SkippedCollection(data.collection, data.name, f"{type(error).__name__}: {error}")


def _trained(data: TrainingSet, folder: Path, options: TrainOptions) -> Trained:
    held_out = data.held_out
    warnings = [*data.warnings, *_checked(data.labels, held_out)]
    candidates = [
        FittedCandidate(
            estimator,
            fit(
                np.ascontiguousarray(data.vectors[~held_out]),
                data.labels[~held_out],
                estimator,
                options.threshold,
                options.abstain,
            ),
        )
        for estimator in options.estimators
    ]
    best, ranking = publish(folder, data, candidates, options.metric, options.keep)
    return Trained(best, tuple(ranking), tuple(warnings))


def _checked(labels: BoolArray, held_out: BoolArray) -> list[str]:
    """What to know about the classes of the items.

    Raises:
        CollectionError: there is nothing to learn from.
    """
    n, positive = len(labels), int(labels.sum())
    if positive in (0, n):
        raise CollectionError(f"all {n} items are {'positive' if positive else 'negative'}: one class only")
    learnt = labels[~held_out]
    if learnt.all() or not learnt.any():
        raise CollectionError(
            f"{positive} of {n} items are positive, but outside the held-out fifth all are of one class; "
            "add photos"
        )
    warnings = []
    if min(learnt.sum(), (~learnt).sum()) == 1:
        warnings.append("one class has a single item to learn from: probabilities are not calibrated")
    tested = labels[held_out]
    if not len(tested) or tested.all() or not tested.any():
        warnings.append("the held-out items are not of both classes: the figures say little")
    return warnings
