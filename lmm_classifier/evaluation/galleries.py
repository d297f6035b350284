"""A self-contained HTML page that shows what the classifier did: figures, plots, confusion, galleries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmm_classifier.api.classification import Classification, Neighbour
from lmm_classifier.evaluation.query import EvaluatedItem
from lmm_classifier.evaluation.tables import BRACKETS, Table
from lmm_classifier.metrics.per_label import LabelRow
from lmm_classifier.metrics.stages import confusion
from lmm_classifier.reports.html import picture_of, write_page
from lmm_classifier.reports.plots import Plot
from lmm_classifier.types import UNKNOWN

_SHOWN_NEIGHBOURS = 5
_SHOWN_CANDIDATES = 4
_MATRIX_LABELS = 30  # a matrix of more is no picture any more
_SHOWN_PAIRS = 30
_OPEN_LABELS = 40  # rows of the table of labels that are shown unasked


@dataclass(frozen=True, slots=True)
class Gallery:
    """A heading, how many queries it stands for, and those that are shown."""

    heading: str
    total: int
    shown: Sequence[EvaluatedItem]


@dataclass(frozen=True, slots=True)
class _Cell:
    count: int
    shade: float  # 0..1, share of the row
    diagonal: bool


@dataclass(frozen=True, slots=True)
class _Pair:
    truth: str
    answer: str
    count: int
    share: float  # of the queries that show `truth`


@dataclass(frozen=True, slots=True)
class _Near:
    neighbour: Neighbour
    picture: str | None
    trouble: str | None  # why there is no picture; None where none was asked for


def write_report(
    path: Path,
    title: str,
    figures: Mapping[str, str],
    queries: Sequence[EvaluatedItem],
    corpus_root: Path | None,
    per_kind: int = 24,
    *,
    tables: Sequence[Table] = (),
    plots: Sequence[Plot] = (),
    labels: Sequence[LabelRow] = (),
    galleries: Sequence[Gallery] | None = None,
) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        title: heading.
        figures: name -> value, shown as a table in this order.
        queries: all answered queries; the confusion counts all, as a matrix for up to _MATRIX_LABELS labels,
            else as the most frequent mistakes.
        corpus_root: what the neighbours' paths start from; None shows them without pictures.
        per_kind: pictures of corrections, regressions, wrong and right answers each.
        tables: more figures.
        plots: drawings.
        labels: a row per label.
        galleries: what to show instead of `per_kind` queries of each kind.

    Raises:
        IndexFolderError: the page cannot be written there.
    """
    write_page(
        path,
        "report.html.jinja",
        package="lmm_classifier.evaluation",
        title=title,
        figures=figures,
        tables=tables,
        brackets=BRACKETS,
        plots=plots,
        matrix=_matrix(queries),
        pairs=_pairs(queries),
        labels=labels,
        open_labels=_OPEN_LABELS,
        galleries=_by_kind(queries, per_kind) if galleries is None else galleries,
        picture=picture_of,
        near=lambda answer: _near(answer, corpus_root),
        shown_candidates=_SHOWN_CANDIDATES,
        shown_pairs=_SHOWN_PAIRS,
        unknown=UNKNOWN,
    )


def _spread(members: Sequence[EvaluatedItem], most: int) -> Sequence[EvaluatedItem]:
    """At most `most` of them, evenly over the whole list: the first ones would all have one label."""
    return [members[i * len(members) // most] for i in range(most)] if len(members) > most else members


def _matrix(queries: Sequence[EvaluatedItem]) -> list[tuple[str, list[_Cell]]] | None:
    """A row per label; None for more than _MATRIX_LABELS, "unknown" among them."""
    if len({UNKNOWN, *(q.truth for q in queries), *(q.answer.label for q in queries)}) > _MATRIX_LABELS:
        return None
    names, counts = confusion([q.answer for q in queries], [q.truth for q in queries])
    totals = counts.sum(axis=1).clip(1)
    return [
        (name, [_Cell(int(n), float(n / totals[i]), i == j) for j, n in enumerate(row)])
        for i, (name, row) in enumerate(zip(names, counts, strict=True))
    ]


def _pairs(queries: Sequence[EvaluatedItem]) -> list[_Pair]:
    """All mistakes, most frequent first."""
    support = Counter(query.truth for query in queries)
    wrong = Counter((query.truth, query.answer.label) for query in queries if not query.right)
    ordered = sorted(wrong.items(), key=lambda item: (-item[1], item[0]))
    return [_Pair(truth, answer, n, n / support[truth]) for (truth, answer), n in ordered]


def _by_kind(queries: Sequence[EvaluatedItem], per_kind: int) -> Iterator[Gallery]:
    headings = {
        "correction": "Corrected by the reranker",
        "regression": "Made worse by the reranker",
        "wrong": "Wrong",
        "right": "Right",
    }
    for kind, heading in headings.items():
        members = [query for query in queries if query.kind == kind]
        yield Gallery(heading, len(members), _spread(members, per_kind))


def _near(answer: Classification, root: Path | None) -> list[_Near]:
    nearest = answer.neighbours[:_SHOWN_NEIGHBOURS]
    if root is None:
        return [_Near(neighbour, None, None) for neighbour in nearest]
    return [_Near(neighbour, *picture_of(root / neighbour.path)) for neighbour in nearest]
