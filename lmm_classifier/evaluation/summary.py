"""From answered queries to figures with intervals: which metric over which queries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import numpy as np

from lmm_classifier.evaluation.query import EvaluatedItem
from lmm_classifier.evaluation.results import (
    ConfidenceFigures,
    KnownFigures,
    RerankFigures,
    ShareFigures,
    UnknownFigures,
)
from lmm_classifier.metrics.bootstrap import Estimate, Statistic, estimate
from lmm_classifier.metrics.confidence import (
    adaptive_calibration_error,
    aurc,
    brier,
    expected_calibration_error,
    reliability_bins,
    selective_accuracy,
)
from lmm_classifier.metrics.open_set import (
    aupr_known,
    aupr_unknown,
    auroc,
    fpr_at_kept,
    oscr_area,
)
from lmm_classifier.metrics.per_label import macro_f1
from lmm_classifier.metrics.rerank import (
    best_label,
    candidate_ranks,
    candidate_recall,
    offered,
)
from lmm_classifier.metrics.rerank_share import RerankedShare, accuracy_by_share, share_for_gain
from lmm_classifier.metrics.stages import known_score
from lmm_classifier.metrics.weighted import Counts, Floats, share
from lmm_classifier.types import UNKNOWN, BoolArray

_GAIN_PART = 0.8  # of the reranker's gain: from here on, more questions bring little
_COVERAGES = (0.5, 0.8, 0.9, 0.95)
_RECALL_AT = (1, 2, 3, 5, 10)


class Measure:
    """Figures over some queries, all with the same number of resamples and the same seed."""

    def __init__(self, resamples: int, seed: int) -> None:
        self._resamples = resamples
        self._seed = seed

    def known(self, queries: Sequence[EvaluatedItem]) -> KnownFigures:
        """Over known queries alone."""
        truths = [q.truth for q in queries]
        labels = [q.answer.label for q in queries]
        statistics: dict[str, Statistic] = {
            "accuracy": _share(right(queries)),
            "macro_f1": partial(macro_f1, truths, labels),
            "retrieval_accuracy": _share(_flags(q.answer.retrieval_label == q.truth for q in queries)),
            "closed_accuracy": _share(closed_right(queries)),
            "rejected": _share(_flags(label == UNKNOWN for label in labels)),
        }
        return KnownFigures(len(queries), **self._estimate(statistics, queries))

    def unknown(self, queries: Sequence[EvaluatedItem]) -> UnknownFigures:
        """The knowns against the unknowns among them."""
        truths = [q.truth for q in queries]
        labels = [q.answer.label for q in queries]
        known, scores = _flags(q.group == "known" for q in queries), known_scores(queries)
        rejected = _flags(label == UNKNOWN for label in labels)
        statistics: dict[str, Statistic] = {
            "rejected": _share(rejected, ~known),
            "accuracy": _share(right(queries)),
            "macro_f1": partial(macro_f1, truths, labels),
            "auroc": partial(auroc, scores, known),
            "aupr_known": partial(aupr_known, scores, known),
            "aupr_unknown": partial(aupr_unknown, scores, known),
            "fpr95": partial(fpr_at_kept, scores, known),
            "oscr": partial(oscr_area, scores, known, closed_right(queries)),
        }
        return UnknownFigures(int((~known).sum()), **self._estimate(statistics, queries))

    def confidence(self, queries: Sequence[EvaluatedItem]) -> ConfidenceFigures:
        """Over the answers to all of them."""
        scores, hit = confidences(queries), right(queries)
        statistics: dict[str, Statistic] = {
            "aurc": partial(aurc, scores, hit),
            "ece": partial(expected_calibration_error, scores, hit),
            "adaptive_ece": partial(adaptive_calibration_error, scores, hit),
            "brier": partial(brier, scores, hit),
        }
        found = self._estimate(statistics, queries)
        selective = self._estimate(
            {str(c): partial(selective_accuracy, scores, hit, c) for c in _COVERAGES}, queries
        )
        return ConfidenceFigures(
            len(queries),
            **found,
            selective_accuracy={c: selective[str(c)] for c in _COVERAGES},
            reliability=reliability_bins(scores, hit),
        )

    def rerank(self, queries: Sequence[EvaluatedItem]) -> RerankFigures:
        """Over all of them; the candidates' recall over the knowns."""
        answers, truths = [q.answer for q in queries], [q.truth for q in queries]
        asked, is_known = (
            _flags(a.used_reranker for a in answers),
            _flags(q.group == "known" for q in queries),
        )
        had_it = offered(answers, truths)
        reachable = had_it | (right(queries) & ~asked)
        known = [q for q in queries if q.group == "known"]
        ranks = candidate_ranks([q.answer for q in known], [q.truth for q in known])
        statistics: dict[str, Statistic] = {
            "share": _share(asked),
            "share_known": _share(asked, is_known),
            "accuracy": _share(right(queries), had_it),
            "ceiling": _share(reachable),
            "ceiling_known": _share(reachable, is_known),
        }
        found = self._estimate(statistics, queries)
        recall = self._estimate({str(k): partial(candidate_recall, ranks, k) for k in _RECALL_AT}, known)
        return RerankFigures(
            found["share"],
            found["share_known"],
            found["accuracy"] if had_it.any() else None,
            found["ceiling"],
            found["ceiling_known"],
            {k: recall[str(k)] for k in _RECALL_AT},
            self._by_share(queries) if asked.any() else None,
        )

    def _by_share(self, queries: Sequence[EvaluatedItem]) -> ShareFigures:
        asked, after = _flags(q.answer.used_reranker for q in queries), right(queries)
        before = _flags(q.answer.retrieval_label == q.truth for q in queries)
        certainty = np.asarray([q.answer.certainty or 1.0 for q in queries], np.float64)
        photos = RerankedShare(certainty, asked, np.where(asked, before, after), after)
        curve = accuracy_by_share(photos)
        enough = None
        if photos.gain.sum() > 0:
            statistic = partial(share_for_gain, photos, _GAIN_PART)
            enough = self._estimate({"enough": statistic}, queries)["enough"]
        return ShareFigures(tuple(curve.x.tolist()), tuple(curve.y.tolist()), _GAIN_PART, enough)

    def _estimate(
        self, statistics: Mapping[str, Statistic], queries: Sequence[EvaluatedItem]
    ) -> dict[str, Estimate]:
        strata = [query.group for query in queries]
        return estimate(statistics, strata, resamples=self._resamples, seed=self._seed)


def known_scores(queries: Sequence[EvaluatedItem]) -> Floats:
    """How known each looks, float64 (n,), in [0, 1]."""
    return np.asarray([known_score(query.answer) for query in queries], np.float64)


def confidences(queries: Sequence[EvaluatedItem]) -> Floats:
    """How sure each answer is of itself, float64 (n,), in [0, 1]."""
    return np.asarray([query.answer.score for query in queries], np.float64)


def right(queries: Sequence[EvaluatedItem]) -> BoolArray:
    """Whether each answer is right, bool (n,)."""
    return _flags(query.right for query in queries)


def closed_right(queries: Sequence[EvaluatedItem]) -> BoolArray:
    """Whether each would be labelled right if nothing were rejected, bool (n,); never for unknowns."""
    return _flags(q.group == "known" and best_label(q.answer) == q.truth for q in queries)


def _flags(values: Iterable[bool]) -> BoolArray:
    return np.fromiter(values, bool)


def _share(hit: BoolArray, among: BoolArray | None = None) -> Statistic:
    def statistic(counts: Counts) -> Floats:
        return share(hit, among, counts)

    return statistic
