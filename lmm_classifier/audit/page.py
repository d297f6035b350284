"""A self-contained HTML page of what an audit found: a gallery per kind, most certain first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lmm_classifier.api.classification import Neighbour
from lmm_classifier.audit.audit import Audit, Copies, Disagreement, NearDuplicate
from lmm_classifier.errors import ImageError
from lmm_classifier.index.records import Record
from lmm_classifier.reports.html import thumbnail, write_page

PER_KIND = 24  # findings of each kind on the page
_PER_GROUP = 6  # photos of one group of copies


@dataclass(frozen=True, slots=True)
class _Photo:
    path: str
    label: str
    note: str = ""
    picture: str | None = None
    trouble: str | None = None  # why there is no picture; None where none was asked for


@dataclass(frozen=True, slots=True)
class _Card:
    summary: str
    proposed: str | None
    photos: tuple[_Photo, ...]
    voted: bool = False  # the first is the one that the others voted on


@dataclass(frozen=True, slots=True)
class _PageSection:
    name: str
    heading: str
    meaning: str
    total: int
    cards: tuple[_Card, ...]


def write_audit(path: Path, title: str, audit: Audit, corpus_root: Path | None = None) -> None:
    """Write the page; it shows the first PER_KIND findings of each kind and says how many more there are.

    Args:
        path: the HTML file.
        title: heading.
        audit: the findings.
        corpus_root: what the images' paths start from; None shows no pictures. A photo that is not there
            or cannot be read is shown as missing, with the reason.

    Raises:
        IndexFolderError: the page cannot be written there.
    """
    sections = tuple(
        _PageSection(
            name, heading, meaning, total, tuple(_with_pictures(card, corpus_root) for card in cards)
        )
        for name, heading, meaning, total, cards in _kinds(audit)
    )
    write_page(
        path,
        "audit.html.jinja",
        package="lmm_classifier.audit",
        title=title,
        audit=audit,
        sections=sections,
        pictured=corpus_root is not None,
    )


def _kinds(audit: Audit) -> Iterable[tuple[str, str, str, int, list[_Card]]]:
    near = "" if audit.near is None else f" of at least {audit.near:.3f}"
    yield (
        "conflicts",
        "Same content, different labels",
        "The files are the same byte for byte; at most one label can be right.",
        len(audit.conflicts),
        [_copies(group) for group in audit.conflicts[:PER_KIND]],
    )
    yield (
        "disagreements",
        "Labels that the neighbours contradict",
        f"The larger part of the vote of the {audit.k} nearest photos goes to another label.",
        len(audit.disagreements),
        [_disagreement(finding) for finding in audit.disagreements[:PER_KIND]],
    )
    yield (
        "near-duplicates",
        "Near-duplicates under different labels",
        f"Different files with a cosine similarity{near}.",
        len(audit.near_duplicates),
        [_near_duplicate(pair) for pair in audit.near_duplicates[:PER_KIND]],
    )
    yield (
        "duplicates",
        "Exact copies under one label",
        "The files are the same byte for byte; all but one can go.",
        len(audit.duplicates),
        [_copies(group) for group in audit.duplicates[:PER_KIND]],
    )


def _copies(group: Copies) -> _Card:
    more = len(group.images) - _PER_GROUP
    summary = f"{len(group.images)} copies" + (f", {_PER_GROUP} shown" if more > 0 else "")
    return _Card(summary, group.proposed, _photos(group.images[:_PER_GROUP]))


def _near_duplicate(pair: NearDuplicate) -> _Card:
    return _Card(f"similarity {pair.similarity:.3f}", pair.proposed, _photos(pair.images))


def _disagreement(finding: Disagreement) -> _Card:
    voters = tuple(_voter(neighbour) for neighbour in finding.neighbours)
    summary = f"{finding.proposed_share:.0%} of the vote against {finding.share:.0%} for its own label"
    return _Card(summary, finding.proposed, (*_photos([finding.image]), *voters), voted=True)


def _photos(images: Sequence[Record]) -> tuple[_Photo, ...]:
    return tuple(_Photo(image.path, image.label) for image in images)


def _voter(neighbour: Neighbour) -> _Photo:
    return _Photo(neighbour.path, neighbour.label, f"{neighbour.similarity:.3f}")


def _with_pictures(card: _Card, root: Path | None) -> _Card:
    if root is None:
        return card
    return replace(card, photos=tuple(_with_picture(photo, root) for photo in card.photos))


def _with_picture(photo: _Photo, root: Path) -> _Photo:
    try:
        return replace(photo, picture=thumbnail(root / photo.path))
    except ImageError as error:
        missing = error.code == "not_found"
        return replace(photo, trouble="photo not found" if missing else f"no picture: {error.reason}")
