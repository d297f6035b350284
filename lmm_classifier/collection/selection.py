"""All kept versions of one collection on the same held-out items: figures, ranking, the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score

from lmm_classifier.collection.artifact import ClassifierArtifact, ClassifierMetrics, read_model, read_version
from lmm_classifier.collection.estimators import DoubleArray, probabilities
from lmm_classifier.collection.training_set import TrainingSet
from lmm_classifier.errors import ClassifierFileError, ConfigError
from lmm_classifier.types import BoolArray

Metric = Literal["macro_precision", "average_precision", "f1", "accuracy"]
METRICS: tuple[Metric, ...] = get_args(Metric)
_BINS = 10


@dataclass(frozen=True, slots=True)
class Competitor:
    """A version in the comparison.

    Attributes:
        path: its JSON file.
        version: None where it cannot be read.
        metrics: on the held-out items; None where it cannot take part.
        reason: why it cannot.
    """

    path: Path
    version: ClassifierArtifact | None
    metrics: ClassifierMetrics | None
    reason: str = ""

    def row(self) -> dict[str, Any]:
        """As a line of the stored table."""
        version = self.version
        return {
            "version": self.path.stem,
            "estimator": version.estimator if version else None,
            "created": version.created if version else None,
            "metrics": asdict(self.metrics) if self.metrics else None,
            "reason": self.reason or None,
        }


def compete(folder: Path, paths: Sequence[Path], data: TrainingSet, metric: Metric) -> list[Competitor]:
    """Every version of a collection on its held-out items, best first.

    Of equals the newer one is better, then the one whose name comes first. Behind all come those that cannot
    be compared: made for other vectors, or of a converted pickle, which may have seen the held-out items.
    """
    entered = [_entered(folder, path, data) for path in paths]
    by_name = sorted(entered, key=lambda c: c.path.name)
    by_age = sorted(by_name, key=lambda c: c.version.created if c.version else "", reverse=True)
    return sorted(by_age, key=lambda c: _rank(c, metric), reverse=True)


def measure(p: DoubleArray, labels: BoolArray, threshold: float) -> ClassifierMetrics | None:
    """The figures for probabilities (n,); None for no items."""
    n, positive = len(labels), int(labels.sum())
    if not n:
        return None
    said = p >= threshold
    return ClassifierMetrics(
        macro_precision=float(
            precision_score(labels, said, labels=[False, True], average="macro", zero_division=0)
        ),
        average_precision=min(float(average_precision_score(labels, p)), 1.0) if 0 < positive < n else None,
        f1=float(f1_score(labels, said, zero_division=0)),
        accuracy=float((said == labels).mean()),
        recall=float(recall_score(labels, said, zero_division=0)),
        calibration_error=calibration_error(p, labels),
        n=n,
        positive=positive,
    )


def calibration_error(p: DoubleArray, labels: BoolArray) -> float:
    """Mean over the items of |mean probability - share of yes| of their bin; ten bins of equal width."""
    bins = np.minimum((p * _BINS).astype(int), _BINS - 1)
    gaps = [abs(p[bins == b].sum() - labels[bins == b].sum()) for b in range(_BINS)]
    return float(sum(gaps) / len(p))


def _entered(folder: Path, path: Path, data: TrainingSet) -> Competitor:
    version = None
    try:
        version = read_version(path)
        if version.split != "sha256":
            return Competitor(path, version, None, "a converted pickle may have seen the held-out items")
        parts = tuple((p.embedding_type, p.dimensionality, p.fingerprint) for p in data.parts)
        if version.collection != data.collection or version.bound_to != (
            data.derivative_type,
            data.embedding_type,
            parts,
        ):
            return Competitor(path, version, None, "made for other vectors than these")
        held_out = data.held_out
        scores = read_model(folder, version).scores(data.vectors[held_out])
    except (ClassifierFileError, ConfigError) as error:
        return Competitor(path, version, None, str(error))
    p = probabilities(scores, version.slope, version.offset)
    return Competitor(path, version, measure(p, data.labels[held_out], version.threshold))


def _rank(competitor: Competitor, metric: Metric) -> tuple[bool, float]:
    """Comparable ones first, then by the figure; an undefined one is the lowest."""
    value = getattr(competitor.metrics, metric) if competitor.metrics else None
    return (not competitor.reason, -1.0 if value is None else round(value, 9))
