"""A self-contained HTML page that shows what the classifier did: figures, confusion matrix, gallery."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmm_classifier.evaluate.metrics import confusion
from lmm_classifier.evaluate.page import thumbnail, write_page
from lmm_classifier.result import Classification, Neighbour
from lmm_classifier.types import UNKNOWN

SHOWN_NEIGHBOURS = 5
SHOWN_CANDIDATES = 4


@dataclass(frozen=True, slots=True)
class Query:
    """An answered query: the photo's path, its true label ("unknown" if the index lacks it), the answer."""

    photo: Path
    truth: str
    answer: Classification

    @property
    def kind(self) -> str:
        """What the reranker made of it, or else whether retrieval was right."""
        right = self.answer.label == self.truth
        was_right = self.answer.retrieval_label == self.truth
        if right != was_right:
            return "correction" if right else "regression"
        return "right" if right else "wrong"


@dataclass(frozen=True, slots=True)
class _Cell:
    count: int
    shade: float  # 0..1, share of the row
    diagonal: bool


def write_report(
    path: Path,
    title: str,
    figures: Mapping[str, str],
    queries: Sequence[Query],
    corpus_root: Path,
    per_kind: int = 24,
) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        title: heading.
        figures: name -> value, shown as a table in this order.
        queries: all answered queries; the matrix counts all, the gallery shows `per_kind` of each kind.
        corpus_root: what the neighbours' paths start from.
        per_kind: pictures of corrections, regressions, wrong and right answers each.
    """
    names, counts = confusion([q.answer for q in queries], [q.truth for q in queries])
    totals = counts.sum(axis=1).clip(1)
    matrix = [
        (name, [_Cell(int(n), float(n / totals[i]), i == j) for j, n in enumerate(row)])
        for i, (name, row) in enumerate(zip(names, counts, strict=True))
    ]
    write_page(
        path,
        "report.html.jinja",
        title=title,
        figures=figures,
        names=names,
        matrix=matrix,
        groups=_groups(queries, per_kind),
        picture=thumbnail,
        near=lambda answer: _near(answer.neighbours, corpus_root),
        shown_candidates=SHOWN_CANDIDATES,
        unknown=UNKNOWN,
    )


def _groups(queries: Sequence[Query], per_kind: int) -> list[tuple[str, int, Sequence[Query]]]:
    headings = {
        "correction": "Corrected by the reranker",
        "regression": "Made worse by the reranker",
        "wrong": "Wrong",
        "right": "Right",
    }
    groups = []
    for kind, heading in headings.items():
        members = [query for query in queries if query.kind == kind]
        groups.append((heading, len(members), _spread(members, per_kind)))
    return groups


def _spread(members: Sequence[Query], most: int) -> Sequence[Query]:
    """At most `most` of them, evenly over the whole list: the first ones would all have one label."""
    return [members[i * len(members) // most] for i in range(most)] if len(members) > most else members


def _near(neighbours: Iterable[Neighbour], root: Path) -> list[tuple[Neighbour, str]]:
    shown = list(neighbours)[:SHOWN_NEIGHBOURS]
    return [(neighbour, thumbnail(root / neighbour.path)) for neighbour in shown]
