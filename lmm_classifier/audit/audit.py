"""What is suspicious in a labelled corpus, told from its index alone: no photo and no model is opened."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from lmm_classifier.api.classification import Neighbour
from lmm_classifier.errors import ConfigError
from lmm_classifier.index.nearest_others import (
    QUERIES,
    NearestOthers,
    near_threshold,
    nearest_others,
    vote_shares,
)
from lmm_classifier.index.records import Record
from lmm_classifier.index.search import VectorIndex
from lmm_classifier.storage.progress import OnProgress, Progress, ignore_progress
from lmm_classifier.types import FloatArray, IntArray

_K = 10
_MAJORITY = 0.5  # share of the vote above which no other label can have as much
_SHOWN_VOTERS = 5


@dataclass(frozen=True, slots=True)
class Copies:
    """Two or more images whose files are the same byte for byte, in the order of the index.

    Attributes:
        images: the images.
        proposed: where their labels differ, the one of them that most of the neighbours' vote goes to;
            None where they agree, or where it goes to a label that none of them has.
    """

    images: tuple[Record, ...]
    proposed: str | None = None


@dataclass(frozen=True, slots=True)
class NearDuplicate:
    """Two images of different labels that look the same; their files differ.

    Attributes:
        images: both, in the order of the index.
        similarity: cosine, in [-1, 1].
        proposed: as for `Copies`, by the neighbours of both, without the two and their copies.
    """

    images: tuple[Record, Record]
    similarity: float
    proposed: str | None


@dataclass(frozen=True, slots=True)
class Disagreement:
    """An image most of whose neighbours' vote goes to another label.

    Attributes:
        image: the image, with the label it has.
        share: of the vote for its own label, in [0, 0.5).
        proposed: the label that has the majority.
        proposed_share: of the vote for that one, in (0.5, 1].
        neighbours: the nearest that voted, at most _SHOWN_VOTERS, nearest first.
    """

    image: Record
    share: float
    proposed: str
    proposed_share: float
    neighbours: tuple[Neighbour, ...]


@dataclass(frozen=True, slots=True)
class Audit:
    """What is suspicious. One image may be part of several findings.

    Attributes:
        images, labels: how many the index has.
        k: neighbours that voted on each image.
        near: cosine similarity from which images of different labels are near-duplicates; None where
            there are no two different images.
        crowded: images with so many near-duplicates or copies that the search for others was ended:
            their neighbours may be missing from the findings.
        duplicates: groups of copies under one label, in the order of the index.
        conflicts: groups of copies under several labels, in the order of the index.
        near_duplicates: across labels, most similar first.
        disagreements: the surest first.
    """

    images: int
    labels: int
    k: int
    near: float | None
    crowded: int
    duplicates: tuple[Copies, ...]
    conflicts: tuple[Copies, ...]
    near_duplicates: tuple[NearDuplicate, ...]
    disagreements: tuple[Disagreement, ...]

    @property
    def suspicious(self) -> bool:
        """Whether there is any finding."""
        return any((self.duplicates, self.conflicts, self.near_duplicates, self.disagreements))


def audit_index(
    index: VectorIndex, *, k: int = _K, near: float | None = None, on_progress: OnProgress = ignore_progress
) -> Audit:
    """Look for copies, near-duplicates across labels, and labels that the neighbours contradict.

    The neighbours of an image are found by `VectorIndex.search`, without the image and its exact copies
    (leave-one-out), and vote as in `lmm_classifier.decision.vote.weighted_vote`. An image is part of at
    most k near-duplicates found from its side, so findings grow with the index and never with its square;
    beside them, memory does not grow with the neighbours. Copies under one label are searched once.

    Args:
        index: the index, exactly or approximately searched; an approximate one may miss neighbours.
        k: neighbours that vote, at least 1.
        near: cosine similarity from which two images are near-duplicates, in (0, 1]; None: relative to
            the index, by `leave_one_out.near_threshold`, which says how that was measured.
        on_progress: told where it stands.

    Raises:
        ConfigError: `k` or `near` is out of range.
    """
    if k < 1 or (near is not None and not 0 < near <= 1):
        raise ConfigError(f"k must be at least 1 and near in (0, 1], they are {k} and {near}")
    contents = index.records.contents()
    rows = _PhotoRows(index, contents)
    if near is None:
        near = near_threshold(index, contents, rows.heads)
    pairs, doubts, crowded = _compared(rows, k, near, on_progress)
    duplicates, conflicts = rows.copies()
    return Audit(
        images=len(index),
        labels=len(index.labels),
        k=k,
        near=near,
        crowded=crowded,
        duplicates=tuple(Copies(rows.records(group)) for group in duplicates),
        conflicts=tuple(
            Copies(rows.records(group), proposed)
            for group, proposed in zip(conflicts, _proposals(rows, conflicts, k), strict=True)
        ),
        near_duplicates=_near_duplicates(rows, pairs, k),
        disagreements=tuple(sorted(doubts, key=lambda d: (-d.proposed_share, d.share))),
    )


class _PhotoRows:
    """The rows of an index: which are copies of which, and one head for all copies under one label."""

    def __init__(self, index: VectorIndex, contents: IntArray) -> None:
        self.index = index
        self.contents = contents
        self.codes = index.records.codes
        keys = contents * len(index.labels) + self.codes
        _, first, place = np.unique(keys, return_index=True, return_inverse=True)
        self.head_of: IntArray = first[place]
        self.heads: IntArray = np.unique(first)
        self._copies: defaultdict[int, list[int]] = defaultdict(list)  # head -> the others of its label
        for row in np.flatnonzero(self.head_of != np.arange(len(contents))).tolist():
            self._copies[int(self.head_of[row])].append(row)

    def under_one_label(self, head: int) -> list[int]:
        """The head and its copies that have the same label."""
        return [head, *self._copies.get(head, ())]

    def copies(self) -> tuple[list[list[int]], list[list[int]]]:
        """Groups of rows with one content: those with one label, and those with several."""
        heads = defaultdict(list)
        for head in self.heads.tolist():
            heads[int(self.contents[head])].append(head)
        groups = [
            (len(g), sorted(r for head in g for r in self.under_one_label(head))) for g in heads.values()
        ]
        return (
            [group for labels, group in groups if labels == 1 and len(group) > 1],
            [group for labels, group in groups if labels > 1],
        )

    def records(self, rows: Sequence[int]) -> tuple[Record, ...]:
        return tuple(self.index.records[row] for row in rows)


def _compared(
    rows: _PhotoRows, k: int, near: float | None, on_progress: OnProgress
) -> tuple[dict[tuple[int, int], float], list[Disagreement], int]:
    """Near-duplicates as (row, row) -> similarity, disagreements, and the number of crowded images."""
    found = nearest_others(rows.index, rows.contents, rows.heads, k, near)
    pairs: dict[tuple[int, int], float] = {}
    doubts: list[Disagreement] = []
    crowded = seen = 0
    while some := list(islice(found, QUERIES)):
        crowded += sum(not others.complete for others in some)
        for others in some:
            pairs |= _near_pairs(rows, others, k, near)
        doubts += _disagreements(rows, some, k)
        seen += len(some)
        on_progress(Progress("comparing images with their neighbours", seen, len(rows.heads)))
    return pairs, doubts, crowded


def _near_pairs(
    rows: _PhotoRows, others: NearestOthers, k: int, near: float | None
) -> Mapping[tuple[int, int], float]:
    """The k most similar heads of another label that are near enough: (row, row) -> similarity."""
    if near is None:
        return {}
    wanted = (
        (others.similarity >= near)
        & (rows.codes[others.rows] != rows.codes[others.row])
        & (rows.head_of[others.rows] == others.rows)
    )
    partners, similarity = others.rows[wanted][:k].tolist(), others.similarity[wanted][:k].tolist()
    return {
        (min(others.row, partner), max(others.row, partner)): value
        for partner, value in zip(partners, similarity, strict=True)
    }


def _disagreements(rows: _PhotoRows, found: Sequence[NearestOthers], k: int) -> Iterator[Disagreement]:
    shares = vote_shares(rows.index, [(others.similarity[:k], others.rows[:k]) for others in found])
    for others, votes in zip(found, shares, strict=True):
        own = rows.index.labels[rows.codes[others.row]]
        best = max(votes, key=votes.__getitem__, default=own)
        if best == own or votes[best] <= _MAJORITY:
            continue
        shown = others.rows[:k][:_SHOWN_VOTERS].tolist()
        neighbours = tuple(
            Neighbour(record.path, record.label, float(similarity))
            for record, similarity in zip(rows.records(shown), others.similarity, strict=False)
        )
        for record in rows.records(rows.under_one_label(others.row)):
            yield Disagreement(record, votes.get(own, 0.0), best, votes[best], neighbours)


def _near_duplicates(
    rows: _PhotoRows, pairs: Mapping[tuple[int, int], float], k: int
) -> tuple[NearDuplicate, ...]:
    ordered = sorted(pairs, key=lambda pair: (-pairs[pair], pair))
    proposals = _proposals(rows, ordered, k)
    return tuple(
        NearDuplicate((rows.index.records[first], rows.index.records[second]), pairs[first, second], proposed)
        for (first, second), proposed in zip(ordered, proposals, strict=True)
    )


def _proposals(rows: _PhotoRows, groups: Sequence[Sequence[int]], k: int) -> list[str | None]:
    """For each group of rows the label of its own that most of the neighbours' vote goes to, if any."""
    members = np.unique(np.asarray([row for group in groups for row in group], np.int64))
    others = {o.row: o for o in nearest_others(rows.index, rows.contents, members, k + 1)}
    voters = [_voters(rows, [others[row] for row in group], k) for group in groups]
    proposals: list[str | None] = []
    for group, votes in zip(groups, vote_shares(rows.index, voters), strict=True):
        best = max(votes, key=votes.__getitem__, default=None)
        proposals.append(best if best in {rows.index.labels[rows.codes[row]] for row in group} else None)
    return proposals


def _voters(rows: _PhotoRows, found: Sequence[NearestOthers], k: int) -> tuple[FloatArray, IntArray]:
    """The k nearest of each, none of which is in the group or a copy of one that is."""
    group = rows.contents[[others.row for others in found]]
    outside = [~np.isin(rows.contents[others.rows], group) for others in found]
    return (
        np.concatenate([others.similarity[out][:k] for others, out in zip(found, outside, strict=True)]),
        np.concatenate([others.rows[out][:k] for others, out in zip(found, outside, strict=True)]),
    )
