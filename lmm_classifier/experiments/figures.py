"""The figures of a run that experiments are compared by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lmm_classifier.evaluation.results import Evaluation


@dataclass(frozen=True, slots=True)
class Figure:
    """How a figure is shown: heading, whether less of it is better, and whether it is a share in percent."""

    heading: str
    less_is_better: bool = False
    percent: bool = False


_OF_KNOWNS: Mapping[str, Figure] = {
    "accuracy": Figure("accuracy", percent=True),
    "retrieval_accuracy": Figure("without reranker", percent=True),
    "closed_accuracy": Figure("nothing rejected", percent=True),
    "macro_f1": Figure("macro F1"),
    "rejected": Figure("knowns rejected", less_is_better=True, percent=True),
}
_OF_UNKNOWNS: Mapping[str, Figure] = {
    "auroc": Figure("AUROC"),
    "oscr": Figure("OSCR"),
    "fpr95": Figure("FPR@95", less_is_better=True, percent=True),
    "aupr_known": Figure("AUPR known"),
    "aupr_unknown": Figure("AUPR unknown"),
    "rejected": Figure("rejected", percent=True),
    "accuracy": Figure("accuracy, all", percent=True),
    "macro_f1": Figure("macro F1, all"),
}
_OF_CONFIDENCE: Mapping[str, Figure] = {
    "aurc": Figure("AURC", less_is_better=True),
    "ece": Figure("ECE", less_is_better=True),
    "brier": Figure("Brier score", less_is_better=True),
}
RERANKED = "reranked"
FIGURES: Mapping[str, Figure] = {
    **_OF_KNOWNS,
    **{
        f"{group}_{name}": Figure(f"{group} {figure.heading}", figure.less_is_better, figure.percent)
        for group in ("near", "far", "all")
        for name, figure in _OF_UNKNOWNS.items()
    },
    **_OF_CONFIDENCE,
    RERANKED: Figure("reranked", less_is_better=True, percent=True),
}


def figures_of(found: Evaluation) -> dict[str, float]:
    """Name of FIGURES -> value, those of unknowns where there are any; confidence is over all photos."""
    figures = {name: getattr(found.known, name).value for name in _OF_KNOWNS}
    for group, of_group in found.unknown.items():
        figures |= {f"{group}_{name}": getattr(of_group, name).value for name in _OF_UNKNOWNS}
    widest = found.confidence["all" if "all" in found.confidence else "known"]
    figures |= {name: getattr(widest, name).value for name in _OF_CONFIDENCE}
    return figures | {RERANKED: found.rerank.share.value}


def milliseconds(found: Evaluation) -> float:
    """Time in the steps per photo, the embedding counted as if it had not been shared."""
    return 1000 * float(sum(found.conditions["timings"]["seconds_per_photo"].values()))
