"""Whether photos still look as those that a calibration was fitted on.

Conformal p-values of such photos are uniform. Those of a log are ranks among the same n calibrated scores, so
they are not independent: with these scores given, their distribution is off by about 1 / sqrt(n), and a plain
test of uniformity raises the alarm by itself once the log is longer than n. What is tested is therefore
whether logged photos and calibrated ones are samples of one distribution: the two-sample Kolmogorov-Smirnov
test on these ranks. It needs no randomised ties: both sides are discrete in the same way, and ties only make
the test more cautious.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from scipy.stats import binomtest, ks_2samp

from lmm_classifier.decision.conformal import p_values
from lmm_classifier.errors import ConfigError
from lmm_classifier.metrics.bootstrap import LEVEL
from lmm_classifier.types import Float64Array

ALARM = 0.01  # probability of a false alarm, of each test
_WINDOW = 200
_LEAST = 20  # of fewer photos nothing but a landslide shows
_Direction = Literal["smaller", "larger"]


@dataclass(frozen=True, slots=True)
class KSResult:
    """A test of some photos.

    Attributes:
        photos: how many.
        statistic: largest gap between the two distributions, in [0, 1].
        p_value: of the test: how often chance alone makes a gap as large.
        direction: which p-values there are too many of, at that gap.
        alarm: whether `p_value` is below ALARM, and the photos at least LEAST.
    """

    photos: int
    statistic: float
    p_value: float
    direction: _Direction
    alarm: bool


@dataclass(frozen=True, slots=True)
class Drift:
    """What a log says.

    Attributes:
        whole, latest: tests of all photos, and of the last ones.
        asked: share of known photos that the calibration is to reject.
        rejected, low, high: share of the photos with a p-value up to that, and its LEVEL interval
            (Clopper-Pearson) given these cuts.
        calibrated: scores that the p-values are ranks among.
    """

    whole: KSResult
    latest: KSResult
    asked: float
    rejected: float
    low: float
    high: float
    calibrated: int

    @property
    def recalibrate(self) -> bool:
        """Whether a test raised the alarm."""
        return self.whole.alarm or self.latest.alarm

    @property
    def advice(self) -> str:
        """What to do, in one line."""
        if self.whole.photos < _LEAST:
            return f"too early to tell: {self.whole.photos} photos, {_LEAST} are needed"
        if not self.recalibrate:
            return "no sign of drift: keep the calibration"
        found = self.latest if self.latest.alarm else self.whole
        photos = f"the {'last ' if found.photos < self.whole.photos else ''}{found.photos} photos"
        if found.direction == "smaller":
            return (
                f"{photos} look less known than those calibrated on: novel material, or drift; look at the "
                "unknowns, add new labels or photos, and calibrate again"
            )
        return (
            f"{photos} look more known than those calibrated on: too few unknowns are caught; calibrate again"
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types."""
        return {**asdict(self), "recalibrate": self.recalibrate, "advice": self.advice}


def drift(
    logged: Sequence[float], calibrated: Float64Array, keep_known: float, window: int = _WINDOW
) -> Drift:
    """Test logged p-values.

    Args:
        logged: in (0, 1], oldest first, not empty.
        calibrated: float64 (n,), ascending: the scores they are ranks among.
        keep_known: share of known photos that the calibration is to keep.
        window: how many of the last are tested by themselves.

    Raises:
        ConfigError: a p-value is no rank among so many scores.
    """
    ranks = np.asarray(logged, np.float64) * (len(calibrated) + 1)
    if np.abs(ranks - ranks.round()).max() > 1e-6:
        raise ConfigError(f"a p-value of the log is no multiple of 1/{len(calibrated) + 1}: it was changed")
    share = binomtest(
        int(np.sum(ranks.round() <= (1 - keep_known) * (len(calibrated) + 1) + 1e-9)), len(ranks)
    )
    interval = share.proportion_ci(LEVEL)
    expected = _as_logged(calibrated)
    return Drift(
        whole=_tested(ranks.round(), expected),
        latest=_tested(ranks.round()[-window:], expected),
        asked=1 - keep_known,
        rejected=float(share.statistic),
        low=float(interval.low),
        high=float(interval.high),
        calibrated=len(calibrated),
    )


def _as_logged(calibrated: Float64Array) -> Float64Array:
    """Ranks that the calibrated photos would have in a log: scores reach it as float32."""
    rounded = calibrated.astype(np.float32).astype(np.float64)
    return np.asarray((p_values(calibrated, rounded) * (len(calibrated) + 1)).round() - 1)


def _tested(ranks: Float64Array, expected: Float64Array) -> KSResult:
    found = ks_2samp(ranks - 1, expected, method="asymp")
    alarm = bool(found.pvalue < ALARM) and len(ranks) >= _LEAST
    direction: _Direction = "smaller" if found.statistic_sign > 0 else "larger"
    return KSResult(len(ranks), float(found.statistic), float(found.pvalue), direction, alarm)
