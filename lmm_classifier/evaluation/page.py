"""The page of an evaluation: its tables, plots, labels, and the worst of each kind of error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from lmm_classifier.evaluation.galleries import Gallery, write_report
from lmm_classifier.evaluation.query import EvaluatedItem
from lmm_classifier.evaluation.results import Evaluation, ShareFigures
from lmm_classifier.evaluation.summary import closed_right, confidences, known_scores, right
from lmm_classifier.evaluation.tables import GROUP_NAMES, tables
from lmm_classifier.metrics.confidence import risk_coverage_curve
from lmm_classifier.metrics.open_set import oscr_curve, roc_curve
from lmm_classifier.metrics.stages import known_score
from lmm_classifier.metrics.weighted import Curve
from lmm_classifier.reports import plots
from lmm_classifier.reports.plots import Line, Plot
from lmm_classifier.types import UNKNOWN, BoolArray

_PER_GALLERY = 12


def write_evaluation(path: Path, title: str, evaluation: Evaluation, corpus_root: Path | None = None) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        title: heading.
        evaluation: what was found.
        corpus_root: what the paths of the index's photos start from; None shows neighbours by name alone.

    Raises:
        IndexFolderError: the page cannot be written there.
    """
    figures = {}
    if evaluation.skipped:
        figures["photos skipped"] = f"{len(evaluation.skipped)}, listed in evaluation.json"
    write_report(
        path,
        title,
        figures,
        evaluation.queries,
        corpus_root,
        tables=tables(evaluation),
        plots=tuple(drawings(evaluation)),
        labels=evaluation.labels,
        galleries=tuple(_worst(evaluation.queries)),
    )


def drawings(evaluation: Evaluation) -> Iterator[Plot]:
    """In reading order; one about unknowns or the reranker only where there are any."""
    if evaluation.unknown:
        yield _roc(evaluation)
        yield _oscr(evaluation)
    yield _risk_coverage(evaluation)
    widest = "all" if "all" in evaluation.confidence else "known"
    found = evaluation.confidence[widest]
    yield plots.reliability(
        f"Mean score and share of right answers in {len(found.reliability)} bins of the score, over "
        f"{found.queries} photos; a larger disc holds more answers. ECE {found.ece.value:.3f}. Above the "
        "dotted line answers are righter than their score says.",
        found.reliability,
    )
    groups = [group for group in ("known", "near", "far") if _of(evaluation, group)]
    yield plots.histogram(
        "How known the photos of each group look to the classifier, as shares of their group.",
        {group: known_scores(_of(evaluation, group)) for group in groups},
        {group: f"{GROUP_NAMES[group]} ({len(_of(evaluation, group))})" for group in groups},
    )
    if evaluation.rerank.by_share is not None:
        yield _reranked(evaluation.rerank.by_share)


def _roc(evaluation: Evaluation) -> Plot:
    def curve(group: str) -> Curve:
        queries = _against(evaluation, group)
        return roc_curve(known_scores(queries), _is_known(queries))

    areas = {group: figures.auroc.value for group, figures in evaluation.unknown.items()}
    kept = 1 - evaluation.known.rejected.value
    return plots.curves(
        "ROC",
        "Photos accepted as known at each cut of the known score. Area under the curve: "
        f"{_listed(areas)}. A disc marks what the classifier accepts as it is set.",
        "share of the unknowns accepted",
        "share of the knowns accepted",
        _lines("AUROC", areas, curve),
        {group: (1 - figures.rejected.value, kept) for group, figures in evaluation.unknown.items()},
    )


def _oscr(evaluation: Evaluation) -> Plot:
    def curve(group: str) -> Curve:
        queries = _against(evaluation, group)
        return oscr_curve(known_scores(queries), _is_known(queries), closed_right(queries))

    areas = {group: figures.oscr.value for group, figures in evaluation.unknown.items()}
    return plots.curves(
        "OSCR",
        "Knowns both accepted and labelled right, against unknowns accepted, at each cut of the known score. "
        f"Area under the curve: {_listed(areas)}; at most the accuracy if nothing were rejected, "
        f"{evaluation.known.closed_accuracy.value:.3f}.",
        "share of the unknowns accepted",
        "share of the knowns accepted and right",
        _lines("OSCR", areas, curve),
        {},
    )


def _risk_coverage(evaluation: Evaluation) -> Plot:
    def curve(group: str) -> Curve:
        queries = list(evaluation.queries) if group == "all" else _of(evaluation, group)
        return risk_coverage_curve(confidences(queries), right(queries))

    areas = {group: figures.aurc.value for group, figures in evaluation.confidence.items()}
    return plots.curves(
        "Risk and coverage",
        "Share of wrong answers when only the answers of the highest scores count. Mean over all coverages: "
        f"{_listed(areas)}.",
        "coverage: share of the photos answered",
        "risk: share of these answers that is wrong",
        _lines("AURC", areas, curve),
        {},
    )


def _lines(figure: str, areas: Mapping[str, float], curve: Callable[[str], Curve]) -> list[Line]:
    """A curve per group, with the area under it in the legend."""
    return [
        Line(curve(group), group, f"{GROUP_NAMES[group]}, {figure} {area:.3f}")
        for group, area in areas.items()
    ]


def _listed(areas: Mapping[str, float]) -> str:
    return ", ".join(f"{GROUP_NAMES[group]} {area:.3f}" for group, area in areas.items())


def _reranked(found: ShareFigures) -> Plot:
    curve = Curve(np.asarray(found.share, np.float64), np.asarray(found.accuracy, np.float64))
    part, mark, said = (
        f"{100 * found.part:.0f} % of the gain",
        None,
        "The reranker gains nothing over all of them.",
    )
    if found.enough is not None:
        share = f"{100 * found.enough.value:.1f} %"
        mark = found.enough.value, f"{part}: {share} shown"
        said = f"{part} takes {share} of the photos (the disc)."
    return plots.reranked(
        "Accuracy over all photos had only the most doubtful been shown to the reranker, those with the "
        f"least evidence for retrieval's best label first: from {curve.y[0]:.3f} with none to "
        f"{curve.y[-1]:.3f} with the {100 * curve.x[-1]:.1f} % that were. {said}",
        curve,
        mark,
    )


def _worst(queries: Sequence[EvaluatedItem]) -> Iterator[Gallery]:
    kinds: tuple[tuple[str, Callable[[EvaluatedItem], bool], Callable[[EvaluatedItem], float]], ...] = (
        (
            "Known photos given a wrong label, surest first",
            lambda q: q.group == "known" and not q.right and q.answer.label != UNKNOWN,
            lambda q: q.answer.score,
        ),
        (
            "Unknown photos accepted, those that look most known first",
            lambda q: q.group != "known" and not q.right,
            lambda q: known_score(q.answer),
        ),
        (
            "Known photos called unknown, those that look least known first",
            lambda q: q.group == "known" and q.answer.label == UNKNOWN,
            lambda q: -known_score(q.answer),
        ),
        ("Made worse by the reranker", lambda q: q.kind == "regression", lambda q: q.answer.score),
    )
    for heading, belongs, badness in kinds:
        members = sorted((q for q in queries if belongs(q)), key=badness, reverse=True)
        if members or heading != "Made worse by the reranker":
            yield Gallery(heading, len(members), members[:_PER_GALLERY])


def _of(evaluation: Evaluation, group: str) -> list[EvaluatedItem]:
    return [query for query in evaluation.queries if query.group == group]


def _against(evaluation: Evaluation, group: str) -> list[EvaluatedItem]:
    """The knowns and one group of unknowns, or all of them."""
    return [query for query in evaluation.queries if group == "all" or query.group in {"known", group}]


def _is_known(queries: Sequence[EvaluatedItem]) -> BoolArray:
    return np.asarray([query.group == "known" for query in queries])
