"""What an evaluation found, as data; `to_dict` is evaluation.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lmm_classifier.corpus.corpus import SkippedFile
from lmm_classifier.evaluation.query import EvaluatedItem
from lmm_classifier.metrics.bootstrap import Estimate
from lmm_classifier.metrics.confidence import ReliabilityBin
from lmm_classifier.metrics.per_label import LabelRow
from lmm_classifier.metrics.stages import StageMetrics, known_score

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class KnownFigures:
    """Over the known queries alone, shares in [0, 1].

    Attributes:
        queries: how many.
        accuracy: share of right answers; one that is called unknown counts as wrong.
        macro_f1: mean F1 over their labels; as above.
        retrieval_accuracy: accuracy without the reranker.
        closed_accuracy: accuracy of the best label, whether or not it was rejected.
        rejected: share that is called unknown: what a calibration's target speaks of.
    """

    queries: int
    accuracy: Estimate
    macro_f1: Estimate
    retrieval_accuracy: Estimate
    closed_accuracy: Estimate
    rejected: Estimate


@dataclass(frozen=True, slots=True)
class UnknownFigures:
    """The known queries against one set of unknowns, all in [0, 1].

    Attributes:
        queries: unknowns in the set.
        rejected: share of them that is called unknown.
        accuracy: share of right answers over the knowns and these.
        macro_f1: over the knowns and these, "unknown" being one more label.
        auroc, aupr_known, aupr_unknown, fpr95, oscr: as `open_set_metrics` defines them, by `known_score`.
    """

    queries: int
    rejected: Estimate
    accuracy: Estimate
    macro_f1: Estimate
    auroc: Estimate
    aupr_known: Estimate
    aupr_unknown: Estimate
    fpr95: Estimate
    oscr: Estimate


@dataclass(frozen=True, slots=True)
class ConfidenceFigures:
    """Whether the score of an answer tells how far to trust it; as `confidence_metrics` defines them.

    Attributes:
        queries: how many.
        aurc, ece, adaptive_ece, brier: over their answers, in [0, 1]; lower is better.
        selective_accuracy: coverage -> accuracy of the surest answers.
        reliability: the bins of `ece`.
    """

    queries: int
    aurc: Estimate
    ece: Estimate
    adaptive_ece: Estimate
    brier: Estimate
    selective_accuracy: Mapping[float, Estimate]
    reliability: tuple[ReliabilityBin, ...]


@dataclass(frozen=True, slots=True)
class ShareFigures:
    """Accuracy had only the most doubtful of the reranked queries been sent, as `rerank_share` defines it.

    Attributes:
        share: of all queries that is sent, from 0 to the share that was: 0, 1/n, 2/n, ...
        accuracy: over all queries, for each of these.
        part: of the gain (corrections less regressions) that `enough` asks for, in (0, 1].
        enough: the smallest share that brings it; None where the reranker gains nothing.
    """

    share: tuple[float, ...]
    accuracy: tuple[float, ...]
    part: float
    enough: Estimate | None


@dataclass(frozen=True, slots=True)
class RerankFigures:
    """What the reranker was sent, and what it made of it, shares in [0, 1].

    Attributes:
        share: of all queries that it decided.
        share_known: of the known ones.
        accuracy: of its answers where the right one was among its options; None where it never was.
        ceiling: accuracy over all queries had each such answer been right: the most that a better reranker
            can reach with the same photos and options.
        ceiling_known: of the known ones.
        candidate_recall: k -> share of the known queries whose label is among the k best candidates: the
            most that a reranker shown k of them can reach.
        by_share: what it would have brought had it been sent less; None where it was sent nothing.
    """

    share: Estimate
    share_known: Estimate
    accuracy: Estimate | None
    ceiling: Estimate
    ceiling_known: Estimate
    candidate_recall: Mapping[int, Estimate]
    by_share: ShareFigures | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything that was found.

    Attributes:
        known: the known queries.
        unknown: "near", "far" and, with both, "all" -> the knowns against these.
        confidence: "known" and, with unknowns, "all" -> over these queries.
        rerank: the reranker's part.
        stages: accuracy before and after the reranker, its corrections and regressions.
        labels: a row per label over all queries, so an unknown taken for a label lowers its precision.
        queries: the answered queries in order.
        skipped: photos that were not evaluated, and why.
        left_out: what lies among them and is no photo.
        subject: what was evaluated: sources, settings, index, thresholds.
        conditions: how: seed, resamples, seconds, versions, date.
    """

    known: KnownFigures
    unknown: Mapping[str, UnknownFigures]
    confidence: Mapping[str, ConfidenceFigures]
    rerank: RerankFigures
    stages: StageMetrics
    labels: tuple[LabelRow, ...]
    queries: tuple[EvaluatedItem, ...]
    skipped: tuple[SkippedFile, ...]
    left_out: tuple[SkippedFile, ...]
    subject: Mapping[str, Any]
    conditions: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types; `confusion` lists what occurs, `photos` one object per query."""
        groups = Counter(query.group for query in self.queries)
        confused = Counter((query.truth, query.answer.label) for query in self.queries)
        return {
            "schema_version": SCHEMA_VERSION,
            **self.subject,
            "counts": {group: groups[group] for group in ("known", "near", "far")}
            | {"skipped": len(self.skipped)},
            "known": asdict(self.known),
            "unknown": {name: asdict(figures) for name, figures in self.unknown.items()},
            "confidence": {name: _with_text_keys(asdict(f)) for name, f in self.confidence.items()},
            "rerank": _with_text_keys(asdict(self.rerank)),
            "stages": asdict(self.stages),
            "labels": [asdict(row) for row in self.labels],
            "confusion": [
                {"truth": truth, "answer": answer, "queries": n}
                for (truth, answer), n in sorted(confused.items())
            ],
            "photos": [_photo(query) for query in self.queries],
            "skipped": [asdict(file) for file in self.skipped],
            "left_out": [asdict(file) for file in self.left_out],
            **self.conditions,
        }


def _photo(query: EvaluatedItem) -> dict[str, Any]:
    answer = query.answer
    return {
        "photo": str(query.photo),
        "group": query.group,
        "shows": query.shows or None,
        "truth": query.truth,
        "label": answer.label,
        "status": answer.status,
        "retrieval_label": answer.retrieval_label,
        "certainty": answer.certainty,
        "stage": answer.stage,
        "used_reranker": answer.used_reranker,
        "degraded": answer.degraded,
        "score": answer.score,
        "known_score": known_score(answer),
    }


def _with_text_keys(body: dict[str, Any]) -> dict[str, Any]:
    """The same with the keys of its mappings as text, as JSON has them."""
    return {
        name: {str(key): entry for key, entry in value.items()}
        if name in {"selective_accuracy", "candidate_recall"}
        else value
        for name, value in body.items()
    }
