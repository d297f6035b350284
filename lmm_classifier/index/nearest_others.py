"""Neighbours of an index's own images, each without itself and without its exact copies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lmm_classifier.decision.vote import weighted_vote
from lmm_classifier.index.search import VectorIndex
from lmm_classifier.types import FloatArray, IntArray

QUERIES = 256  # searched at once while the search is as deep as it starts; fewer when it gets deeper
DEEPEST = 1024
"""Neighbours after which the search for more of one image ends: only a corpus with hundreds of nearly equal
photos gets there, and finds the nearest of them all the same."""
_DEEPER = 4  # times as many neighbours in the next attempt
_SAMPLE = 2_000
"""Images that say how far nearest neighbours are apart: the standard error of a median of so many is about
1.25 / sqrt(2000) = 3 % of their standard deviation."""
_NEAR_RATIO = 0.5
"""Near-duplicates are within this share of the usual distance (1 - cosine similarity) to the nearest image.

Measured on the photos of Oxford Flowers (12 species x 60, 224 px). A constant similarity does not fit two
encoders: the median distance to the nearest photo is .214 with `descriptor` and .153 with MobileNet v1. In
units of that median no two photos of different species are nearer than .71 and .74 (no false alarm), while
120 photos saved again at 80 % of the size as JPEG of quality 70 are at most .10 and .49 away from
themselves, at 60 % and quality 60 at most .22 and 1.31: MobileNet sees the blur, and 47 % are within .5.
Among 380 handwritten digits there is no false alarm either, with `siglip-digits` and with `descriptor`.
"""
_ROUNDING = 1e-5  # of a cosine similarity of float32 vectors: equal ones need not give exactly 1


@dataclass(frozen=True, slots=True, eq=False)
class NearestOthers:
    """Images of other content that are nearest to that of `row`: float32 (m,) and int64 (m,), best first.

    Attributes:
        complete: whether there were as many as asked for; if not, the search ended at DEEPEST.
    """

    row: int
    similarity: FloatArray
    rows: IntArray
    complete: bool


def nearest_others(
    index: VectorIndex, contents: IntArray, rows: IntArray, k: int, near: float | None = None
) -> Iterator[NearestOthers]:
    """The images nearest to some of the index, in the order in which searching them ends.

    Memory does not grow with the index: about QUERIES x k neighbours are held at a time.

    Args:
        index: n images.
        contents: int64 (n,), as `Records.contents` gives it.
        rows: int64 (m,), the images whose neighbours are wanted.
        k: how many each gets, if there are so many of other content.
        near: each also gets all that are at least so similar, until k of these have another label.
    """
    deepest = min(DEEPEST, len(index))
    pending, depth = rows, min(k + 2, deepest)  # itself, and one farther than the last that counts
    while pending.size:
        unfinished = []
        step = max(1, QUERIES * (k + 2) // max(depth, 1))
        for start in range(0, len(pending), step):
            part = pending[start : start + step]
            found = index.search(index.vectors.take(part), depth)
            for row, similarity, candidates in zip(part.tolist(), found.similarity, found.rows, strict=True):
                there = (candidates >= 0) & (contents[candidates] != contents[row])
                others = NearestOthers(row, similarity[there], candidates[there], depth == len(index))
                if others.complete or _suffices(index, others, k, near):
                    yield NearestOthers(row, others.similarity, others.rows, complete=True)
                elif depth == deepest:
                    yield others
                else:
                    unfinished.append(row)
        pending, depth = np.asarray(unfinished, np.int64), min(_DEEPER * depth, deepest)


def near_threshold(index: VectorIndex, contents: IntArray, rows: IntArray) -> float | None:
    """The cosine similarity from which two images of this index are near-duplicates: see _NEAR_RATIO.

    Args:
        index: n images.
        contents: int64 (n,), as `Records.contents` gives it.
        rows: int64 (m,), one of each content; at most SAMPLE of them are looked at, evenly spread.

    Returns:
        the similarity; None where there are no two images of different content.
    """
    sample = rows[np.linspace(0, len(rows) - 1, min(_SAMPLE, len(rows))).astype(np.int64)]
    nearest = [o.similarity[0] for o in nearest_others(index, contents, sample, 1) if o.similarity.size]
    if not nearest:
        return None
    distance = 1 - float(np.median(nearest))
    return min(1 - _NEAR_RATIO * distance, 1 - _ROUNDING)


def vote_shares(index: VectorIndex, voters: Sequence[tuple[FloatArray, IntArray]]) -> list[dict[str, float]]:
    """How neighbours share out their vote among labels, by `weighted_vote`.

    Args:
        index: where the neighbours are.
        voters: per vote, similarities float32 (k,), best first, and rows int64 (k,); k may differ.

    Returns:
        per vote, label -> share in (0, 1]; empty where nobody is similar at all.
    """
    similarity = np.zeros((len(voters), max((len(rows) for _, rows in voters), default=0)), np.float32)
    for i, (near, rows) in enumerate(voters):
        similarity[i, : len(rows)] = near
    labels = [[index.labels[code] for code in index.records.codes[rows]] for _, rows in voters]
    scores = weighted_vote(similarity, labels)
    return [
        {scores.labels[j]: float(values[j] / total) for j in np.flatnonzero(values).tolist()}
        for values, total in zip(scores.values, scores.values.sum(axis=1), strict=True)
    ]


def _suffices(index: VectorIndex, others: NearestOthers, k: int, near: float | None) -> bool:
    if others.rows.size < k:
        return False
    if near is None or others.similarity[-1] < near:
        return True
    codes = index.records.codes
    across = (codes[others.rows] != codes[others.row]) & (others.similarity >= near)
    return int(across.sum()) >= k
