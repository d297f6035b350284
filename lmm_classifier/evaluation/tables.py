"""The figures of an evaluation as tables for people: the same in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from typing import TypeVar

from lmm_classifier.evaluation.results import Evaluation
from lmm_classifier.metrics.bootstrap import LEVEL, Estimate

_T = TypeVar("_T")
BRACKETS = f"in brackets: {100 * LEVEL:.0f} % bootstrap intervals"
GROUP_NAMES = {"known": "knowns", "near": "near", "far": "far", "all": "together"}


@dataclass(frozen=True, slots=True)
class Table:
    """A heading, the names of the columns, and rows of as many cells."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables(evaluation: Evaluation) -> tuple[Table, ...]:
    """In reading order; one about unknowns or the reranker only where there are any."""
    found = [_known(evaluation)]
    if evaluation.unknown:
        found.append(_unknown(evaluation))
    found.append(_confidence(evaluation))
    found.append(_rerank(evaluation))
    found.append(_cost(evaluation))
    return tuple(found)


def _known(evaluation: Evaluation) -> Table:
    known = evaluation.known
    rows = [
        ("photos", f"{known.queries}"),
        ("accuracy", _percent(known.accuracy)),
        ("accuracy without the reranker", _percent(known.retrieval_accuracy)),
        ("accuracy if nothing were rejected", _percent(known.closed_accuracy)),
        ("macro F1", _decimal(known.macro_f1)),
        ("rejected as unknown", _percent(known.rejected)),
    ]
    return Table("Known photos", ("figure", "measured"), tuple(rows))


def _unknown(evaluation: Evaluation) -> Table:
    groups = evaluation.unknown
    rows = (
        ("photos", *(f"{figures.queries}" for figures in groups.values())),
        _row("rejected", groups, lambda f: _percent(f.rejected)),
        _row("AUROC", groups, lambda f: _decimal(f.auroc)),
        _row("AUPR known", groups, lambda f: _decimal(f.aupr_known)),
        _row("AUPR unknown", groups, lambda f: _decimal(f.aupr_unknown)),
        _row("FPR@95", groups, lambda f: _percent(f.fpr95)),
        _row("OSCR", groups, lambda f: _decimal(f.oscr)),
        _row("accuracy, all", groups, lambda f: _percent(f.accuracy)),
        _row("macro F1, all", groups, lambda f: _decimal(f.macro_f1)),
    )
    return Table(
        "Unknown photos",
        ("figure", *map(GROUP_NAMES.__getitem__, groups)),
        rows,
    )


def _confidence(evaluation: Evaluation) -> Table:
    groups = evaluation.confidence
    rows = [_row("AURC", groups, lambda f: _decimal(f.aurc))]
    rows += [
        (
            f"surest {100 * c:.0f} % right",
            *(_percent(f.selective_accuracy[c]) for f in groups.values()),
        )
        for c in groups["known"].selective_accuracy
    ]
    rows += [
        _row("ECE", groups, lambda f: _decimal(f.ece)),
        _row("adaptive ECE", groups, lambda f: _decimal(f.adaptive_ece)),
        _row("Brier score", groups, lambda f: _decimal(f.brier)),
    ]
    columns = ("figure", *map(GROUP_NAMES.__getitem__, groups))
    return Table("Score of an answer as its confidence", columns, tuple(rows))


def _rerank(evaluation: Evaluation) -> Table:
    rerank, stages = evaluation.rerank, evaluation.stages
    rows = [
        (
            f"knowns with their label among the {k} best" if k > 1 else "knowns with their label first",
            _percent(found),
        )
        for k, found in rerank.candidate_recall.items()
    ]
    rows += [("photos shown to the reranker", _percent(rerank.share))]
    if rerank.share.value:
        offered = "-" if rerank.accuracy is None else _percent(rerank.accuracy)
        rows += [
            ("knowns shown to the reranker", _percent(rerank.share_known)),
            ("its accuracy, right answer offered", offered),
            ("corrections", f"{stages.corrections}, {stages.corrections_known} of them on knowns"),
            ("regressions", f"{stages.regressions}, {stages.regressions_known} of them on knowns"),
            ("accuracy without it", f"{100 * stages.retrieval_accuracy:.1f} %"),
            ("accuracy with it", f"{100 * stages.hybrid_accuracy:.1f} %"),
            ("if it chose right where it could", _percent(rerank.ceiling)),
            ("the same, knowns alone", _percent(rerank.ceiling_known)),
        ]
    if (by_share := rerank.by_share) and by_share.enough:
        rows += [(f"share that brings {100 * by_share.part:.0f} % of its gain", _percent(by_share.enough))]
    return Table("Candidates and reranker", ("figure", "measured"), tuple(rows))


def _cost(evaluation: Evaluation) -> Table:
    timings = evaluation.conditions["timings"]
    rows = [(step, _milliseconds(spent)) for step, spent in timings["seconds_per_photo"].items()]
    if (reranked := timings["seconds_per_reranked_photo"]) is not None:
        rows += [
            (
                f"rerank, each of the {100 * evaluation.rerank.share.value:.1f} % shown",
                _milliseconds(reranked),
            )
        ]
    rows += [("all, with reading the photos", _milliseconds(1 / timings["photos_per_second"]))]
    return Table("Cost", ("step", "per photo"), tuple(rows))


def _row(name: str, groups: Mapping[str, _T], cell: Callable[[_T], str]) -> tuple[str, ...]:
    return (name, *(cell(figures) for figures in groups.values()))


def _percent(found: Estimate) -> str:
    value, low, high = (f"{100 * x:.1f}" if x < 0.9995 else "100" for x in astuple(found))
    return f"{value} % ({low}-{high})"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.2f} ms"


def _decimal(found: Estimate) -> str:
    low, high = (f"{x:.3f}"[1:] if x < 0.9995 else "1.00" for x in (found.low, found.high))
    return f"{found.value:.3f} ({low}-{high})"
