"""Accuracy against the share reranked: what fewer questions to the reranker would have brought.

The photos that were sent to it are ordered by doubt, the least certainty of retrieval's answer first: the
order in which a limit at run time sends them. One that is held back keeps retrieval's answer. Photos of
equal doubt come in no order: where a cut falls between them, the mean over all orders is taken. `counts` and
the result's shape are as `columns` says.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lmm_classifier.errors import ConfigError, CorpusError
from lmm_classifier.metrics.weighted import (
    Counts,
    Curve,
    Floats,
    Ranking,
    drawn,
    flags,
    numbers,
    summed,
)
from lmm_classifier.types import BoolArray


@dataclass(frozen=True, slots=True, eq=False)
class RerankedShare:
    """Which of n photos the reranker was sent, and what it made of them.

    Attributes:
        certainty: float64 (n,), of retrieval's answer; the smaller, the more doubtful.
        sent: bool (n,); True for one at least.
        without, right: bool (n,), whether retrieval's answer is right, and the final one; an unknown called
            "unknown" is. The same for a photo that was not sent.

    Raises:
        ConfigError: certainty that is not finite, lengths that differ, or an answer that changed though its
            photo was not sent.
        CorpusError: nothing was sent.
    """

    certainty: Floats
    sent: BoolArray
    without: BoolArray
    right: BoolArray

    def __post_init__(self) -> None:
        n = len(numbers("certainty", self.certainty))
        for name in ("sent", "without", "right"):
            flags(name, getattr(self, name), n)
        if not self.sent.any():
            raise CorpusError("the reranker was sent no photo, so nothing can be measured")
        if (changed := np.flatnonzero((self.without != self.right) & ~self.sent)).size:
            raise ConfigError(f"the answer to photo {changed[0]} changed, but the reranker was not sent it")

    @property
    def gain(self) -> Floats:
        """What the reranker made of each, float64 (n,): 1 for a correction, -1 for a regression, else 0."""
        return self.right.astype(np.float64) - self.without


def accuracy_by_share(photos: RerankedShare) -> Curve:
    """Accuracy over all photos (y) had only the most doubtful (x, a share of all of them) been sent.

    At x = 0, 1/n, 2/n, ... up to the share that was sent.
    """
    n = len(photos.sent)
    ranking, gained = _ranked(photos, np.ones(n))
    answered = np.arange(photos.sent.sum() + 1.0)
    return Curve(answered / n, (photos.without.sum() + ranking.among(gained, answered)) / n)


def share_for_gain(photos: RerankedShare, part: float, counts: Counts | None = None) -> Floats:
    """Smallest share of all photos, the most doubtful first, that brings `part` of the reranker's gain.

    The gain is corrections less regressions over all that were sent. In [0, 1], whole photos; NaN where
    there is no gain.

    Args:
        photos: n of them.
        part: of the gain, above 0 and at most 1.
        counts: (n,) or (b, n).

    Raises:
        ConfigError: `part` is out of range.
    """
    if not 0 < part <= 1:
        raise ConfigError(f"part must be above 0 and at most 1, got {part}")
    counts = drawn(counts, len(photos.sent))
    ranking, gained = _ranked(photos, counts)
    goal = part * gained[..., -1:]
    cut = np.argmax(gained >= goal - 1e-9, axis=-1)[..., None]  # the first to reach it
    before = np.maximum(cut - 1, 0)
    least, most = (np.take_along_axis(gained, at, axis=-1) for at in (before, cut))
    start, end = (np.take_along_axis(ranking.answers, at, axis=-1) for at in (before, cut))
    rise = np.where(most > least, most - least, 1)
    sent = np.ceil(start + (goal - least) / rise * (end - start) - 1e-9)  # .8 of 5 is 4, not 5
    return np.where(goal > 0, sent, np.nan)[..., 0] / summed(counts)


def _ranked(photos: RerankedShare, counts: Counts) -> tuple[Ranking, Floats]:
    """Those sent by falling doubt, and the gain down to each distinct doubt."""
    sent = counts[..., photos.sent]
    ranking = Ranking(-photos.certainty[photos.sent], sent)
    return ranking, ranking.sums(sent * photos.gain[photos.sent])
