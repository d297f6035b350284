"""What a calibration is asked for, and the cuts that deliver it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from pydantic.dataclasses import dataclass as checked_dataclass

from lmm_classifier.decision.conformal import keeping_cut, set_cut
from lmm_classifier.decision.gates import Gates
from lmm_classifier.errors import ConfigError
from lmm_classifier.options import Flag
from lmm_classifier.types import Float64Array, IntArray


@checked_dataclass(frozen=True, slots=True, config={"extra": "forbid"})
class Costs:
    """What mistakes of the novelty gate cost, in any unit, and how common unknowns will be.

    Attributes:
        reject_known: of calling a known image unknown.
        accept_unknown: of giving an unknown image a label.
        unknown_share: of the images to come, in (0, 1).
    """

    reject_known: float
    accept_unknown: float
    unknown_share: float


@checked_dataclass(frozen=True, slots=True, config={"extra": "forbid"})
class CalibrationTarget:
    """What is asked for. All shares lie in (0, 1).

    Attributes:
        keep_known: share of known images that must not be called unknown.
        per_label: the same for images whose best label is this one.
        every_label: a cut of its own for each label that has images enough for its share.
        costs: choose the cut by these instead of `keep_known`; needs simulated unknowns.
        coverage: share of known images whose true label must remain possible.
        catch_unknown: share of unknown images that must not be accepted outright: those above the novelty
            gate are uncertain then, and a reranker or a person decides.
        second_look: share of known images that may be uncertain for the sake of `catch_unknown` alone.
        always_look: share of known images, those that look least known, that are uncertain in any case. An
            encoder trained on the very labels of the index tells simulated unknowns apart more easily than
            real ones, so that `catch_unknown` asks for too few.
    """

    keep_known: float = 0.95
    per_label: Mapping[str, float] = field(default_factory=dict)
    every_label: Flag = False
    costs: Costs | None = None
    coverage: float = 0.99
    catch_unknown: float = 0.9
    second_look: float = 0.25
    always_look: float = 0.0

    def __post_init__(self) -> None:
        shares = {
            "keep_known": self.keep_known,
            "coverage": self.coverage,
            "catch_unknown": self.catch_unknown,
            "second_look": self.second_look,
            **{f"keep_known of {label!r}": share for label, share in self.per_label.items()},
            **({"unknown_share": self.costs.unknown_share} if self.costs else {}),
        }
        for name, share in shares.items():
            if not 0 < share < 1:  # NaN is refused too
                raise ConfigError(f"{name} must lie between 0 and 1, got {share}")
        if not 0 <= self.always_look < 1:
            raise ConfigError(f"always_look must lie between 0 and 1, got {self.always_look}")
        if self.costs and not (
            0 < self.costs.reject_known < np.inf and 0 < self.costs.accept_unknown < np.inf
        ):
            raise ConfigError("costs must be above 0")

    def __str__(self) -> str:
        if self.costs:
            cost = (
                f"{self.costs.reject_known:g} per known rejected, {self.costs.accept_unknown:g} per unknown"
            )
            goal = f"least cost at {cost} accepted and {self.costs.unknown_share:.1%} unknown"
        else:
            of_each = " of each label" if self.every_label else ""
            goal = f"keep {self.keep_known:.1%} of known images{of_each}"
        own = "".join(f", {share:.1%} of {label}" for label, share in sorted(self.per_label.items()))
        return f"{goal}{own}; true label possible for {self.coverage:.1%}"


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationSample:
    """What m known and n unknown images look like.

    Attributes:
        known: float64 (m,), closeness of the known images.
        best: int64 (m,), columns of their best labels.
        true_probabilities: (m,), of their true labels.
        unknown: float64 (n,), closeness of the unknown ones.
    """

    known: Float64Array
    best: IntArray
    true_probabilities: Float64Array
    unknown: Float64Array


def fit_gates(seen: CalibrationSample, target: CalibrationTarget, labels: Sequence[str]) -> Gates:
    """The gates that meet a target on what was seen.

    Raises:
        ConfigError: costs without unknowns, a target for no label of the index, or one that a label has too
            few images for.
    """
    known = max(_novelty_cut(seen, target), 0.0)
    own = _cuts_of_labels(seen, target, labels)
    kept = seen.known >= np.asarray([own.get(labels[j], known) for j in seen.best])
    if not kept.any():
        raise ConfigError("at these costs it is cheapest to reject every known image; check them")
    sure = known
    if len(seen.unknown):
        caught = float(np.quantile(seen.unknown, target.catch_unknown, method="higher"))
        bearable = float(np.quantile(seen.known, target.second_look))
        sure = max(known, min(caught, bearable))
    sure = max(sure, float(np.quantile(seen.known, target.always_look)) if target.always_look else 0.0)
    return Gates(
        known=known,
        sure=sure,
        probability=set_cut(seen.true_probabilities[kept], target.coverage),
        keep_known=target.keep_known if target.costs is None else float(np.mean(kept)),
        coverage=min(target.coverage, int(kept.sum()) / (int(kept.sum()) + 1)),
        per_label=own,
    )


def _novelty_cut(seen: CalibrationSample, target: CalibrationTarget) -> float:
    if target.costs is None:
        return keeping_cut(seen.known, target.keep_known)
    if not len(seen.unknown):
        raise ConfigError("costs need unknown images to weigh: an index of one label has none to hold out")
    cuts = np.concatenate([[0.0], np.sort(np.concatenate([seen.known, seen.unknown]))])
    rejected = np.searchsorted(np.sort(seen.known), cuts) / len(seen.known)
    accepted = 1 - np.searchsorted(np.sort(seen.unknown), cuts) / len(seen.unknown)
    share = target.costs.unknown_share
    cost = (1 - share) * target.costs.reject_known * rejected + share * target.costs.accept_unknown * accepted
    return float(cuts[np.argmin(cost)])


def _cuts_of_labels(
    seen: CalibrationSample, target: CalibrationTarget, labels: Sequence[str]
) -> dict[str, float]:
    if strangers := sorted(set(target.per_label) - set(labels)):
        raise ConfigError(f"the index has no label {strangers[0]!r}, so it can have no target of its own")
    asked = {label: target.keep_known for label in labels if target.every_label} | dict(target.per_label)
    cuts = {}
    for label, keep in asked.items():
        cut = keeping_cut(seen.known[seen.best == labels.index(label)], keep)
        if np.isfinite(cut):
            cuts[label] = cut
        elif label in target.per_label:
            count = int(np.sum(seen.best == labels.index(label)))
            raise ConfigError(
                f"{count} images of {label!r} are too few to keep {keep:.1%} of them: that takes at least "
                f"{int(np.ceil(1 / (1 - keep))) - 1}"
            )
    return cuts
