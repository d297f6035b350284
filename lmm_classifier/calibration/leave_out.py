"""Simulates each indexed image as a new photo (leave-one-out) and as an unknown (leave-label-out).

As *known* an image is asked of an index without it and its near-duplicates, as *unknown* of one without all
images of its label (of a group of labels, where there are many). Nothing but the index is read, so what is
fitted on this has seen no image that the classifier will be judged by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lmm_classifier.decision.heads import Queries
from lmm_classifier.decision.reference import Moments, Reference, fit_reference
from lmm_classifier.errors import CorpusError
from lmm_classifier.index.vectors import Vectors
from lmm_classifier.types import BoolArray, FloatArray, IntArray

_MOST_IMAGES = 4_000
"""Images asked, drawn at random: the standard error of a 5 % quantile of so many is .35 points."""
LEAST_IMAGES = 20  # of fewer, a 5 % quantile is the lowest value, whatever it is
_FOLDS = 10
"""Parts of the images, and of the labels where there are more, that are left out one after the other."""
_CELLS_AT_ONCE = 1 << 26  # similarities held at a time: 256 MiB


@dataclass(frozen=True, slots=True, eq=False)
class Fold:
    """Queries that were asked of the same references.

    Attributes:
        places: int64 (n,), their places among all images asked.
        queries: n of them.
        references: one per encoder, without the queries' images, or without their labels.
    """

    places: IntArray
    queries: Queries
    references: tuple[Reference, ...]


@dataclass(frozen=True, slots=True, eq=False)
class LeaveOutSimulation:
    """m images of a corpus, asked as known and as unknown.

    Attributes:
        rows: int64 (m,), which of the index.
        truths: int64 (m,), columns of their labels.
        groups: int64 (m,), which group of labels an image's label was held out with.
        counts: int64 (c,), images per label in the corpus.
        known, unknown: each covers all m; `unknown` is empty where all are of one label.
        depth: neighbours per query, fewer where there are no more.
        near: similarity from which two of them are near-duplicates.
    """

    rows: IntArray
    truths: IntArray
    groups: IntArray
    counts: IntArray
    known: tuple[Fold, ...]
    unknown: tuple[Fold, ...]
    depth: int
    near: float

    def gather(self, parts: Sequence[Fold], compute: Callable[[Fold], FloatArray]) -> FloatArray:
        """What `compute` (n, x) says of each part, as one float32 (m, x) in the order of the images."""
        results = [(part.places, compute(part)) for part in parts]
        whole = np.empty((len(self.rows), results[0][1].shape[1]), np.float32)
        for places, values in results:
            whole[places] = values
        return whole


def leave_out(
    spaces: Sequence[Vectors],
    codes: IntArray,
    contents: IntArray,
    *,
    labels: int,
    near: float,
    depth: int,
    seed: int,
) -> LeaveOutSimulation:
    """Ask a sample of the images.

    Args:
        spaces: per encoder the n vectors; neighbours are searched by the first, exactly.
        codes: int64 (n,), columns of the labels in [0, c).
        contents: int64 (n,), equal for files of the same bytes.
        labels: c; some may have no images.
        near: cosine similarity from which two images are near-duplicates.
        depth: neighbours per query.
        seed: of the sample and of what is left out together.

    Returns:
        at most _MOST_IMAGES images, one of each content, whose label has at least two.

    Raises:
        CorpusError: these are fewer than LEAST_IMAGES, or nearly the same image all of them.
    """
    rng = np.random.default_rng(seed)
    counts = np.bincount(codes, minlength=labels)
    rows = _enough(_asked(codes, contents, rng))
    group_of = _groups(counts, rng)
    known, unknown, pairs = _neighbours(spaces[0], codes, contents, rows, group_of, near, depth)
    fold_of, has_others = _folds(pairs, codes, rng)
    kept = _enough(np.flatnonzero(has_others[codes[rows]]))
    rows, known, unknown = rows[kept], _some(known, kept), _some(unknown, kept)
    several = len(np.unique(group_of[codes[rows]])) > 1
    depth = _filled(known, unknown) if several else _filled(known)
    known, unknown = ((similarity[:, :depth], found[:, :depth]) for similarity, found in (known, unknown))
    asked = tuple(space.take(rows) for space in spaces)
    by_fold = _left_out(spaces, codes, labels, fold_of, _FOLDS)
    by_group = _left_out(spaces, codes, labels, group_of[codes], int(group_of.max()) + 1)
    return LeaveOutSimulation(
        rows,
        codes[rows],
        group_of[codes[rows]],
        counts,
        tuple(_parts(asked, known, fold_of[rows], by_fold)),
        tuple(_parts(asked, unknown, group_of[codes[rows]], by_group)) if several else (),
        depth,
        near,
    )


def _enough(rows: IntArray) -> IntArray:
    if len(rows) < LEAST_IMAGES:
        raise CorpusError(
            f"{len(rows)} different images of labels with at least two; at least {LEAST_IMAGES} are needed"
        )
    return rows


def _some(found: tuple[FloatArray, IntArray], places: IntArray) -> tuple[FloatArray, IntArray]:
    return found[0][places], found[1][places]


def _asked(codes: IntArray, contents: IntArray, rng: np.random.Generator) -> IntArray:
    _, first = np.unique(contents, return_index=True)
    distinct = np.bincount(codes[first], minlength=codes.max(initial=0) + 1)
    eligible = first[distinct[codes[first]] > 1]
    chosen = rng.permutation(eligible)[:_MOST_IMAGES]
    return np.sort(chosen).astype(np.int64)


def _groups(counts: IntArray, rng: np.random.Generator) -> IntArray:
    """Which labels are held out together: int64 (c,), 0 also for those without images."""
    labelled = int(np.count_nonzero(counts))
    group_of = np.zeros(len(counts), np.int64)
    group_of[counts > 0] = _dealt(labelled, min(_FOLDS, labelled), rng)
    return group_of


def _dealt(items: int, hands: int, rng: np.random.Generator) -> IntArray:
    """Which of the hands each item goes to, at random; their sizes differ by one at most."""
    dealt = np.empty(items, np.int64)
    dealt[rng.permutation(items)] = np.arange(items) % hands
    return dealt


def _neighbours(
    space: Vectors,
    codes: IntArray,
    contents: IntArray,
    rows: IntArray,
    group_of: IntArray,
    near: float,
    depth: int,
) -> tuple[tuple[FloatArray, IntArray], tuple[FloatArray, IntArray], IntArray]:
    """Nearest without near-duplicates, nearest of other groups of labels; pairs of near-duplicates."""
    known, unknown, pairs = [], [], []
    step = max(1, _CELLS_AT_ONCE // max(len(codes), 1))
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        queries = space.take(block)
        similarity = np.concatenate([queries @ part.T for part in space.parts], axis=1)
        copies = (similarity >= near) | (contents[block][:, None] == contents[None, :])
        here, there = np.nonzero(copies)
        pairs.append(np.stack([block[here], there]))
        known.append(_nearest(similarity, ~copies, codes, depth))
        foreign = group_of[codes[block]][:, None] != group_of[codes][None, :]
        unknown.append(_nearest(similarity, foreign, codes, depth))
    return _joined(known), _joined(unknown), np.concatenate(pairs, axis=1)


def _nearest(
    similarity: FloatArray, allowed: BoolArray, codes: IntArray, depth: int
) -> tuple[FloatArray, IntArray]:
    masked = np.where(allowed, similarity, -np.inf)
    depth = min(depth, masked.shape[1])
    rows = np.argpartition(-masked, depth - 1, axis=1)[:, :depth]
    values = np.take_along_axis(masked, rows, 1)
    order = np.lexsort((rows, -values), axis=1)
    rows, values = np.take_along_axis(rows, order, 1), np.take_along_axis(values, order, 1)
    there = np.isfinite(values)
    return np.where(there, values, 0).astype(np.float32), np.where(there, codes[rows], -1).astype(np.int64)


def _joined(found: Sequence[tuple[FloatArray, IntArray]]) -> tuple[FloatArray, IntArray]:
    return np.concatenate([f[0] for f in found]), np.concatenate([f[1] for f in found])


def _filled(*neighbours: tuple[FloatArray, IntArray]) -> int:
    """Neighbours that every query has.

    As unknown an image has fewer neighbours to find: padding would tell the two apart.
    """
    depth = min(int((codes >= 0).sum(axis=1).min()) for _, codes in neighbours)
    if depth < 1:
        raise CorpusError("an image has nothing but near-duplicates of itself to be compared with")
    return depth


def _folds(pairs: IntArray, codes: IntArray, rng: np.random.Generator) -> tuple[IntArray, BoolArray]:
    """A fold per image, the same for near-duplicates, and per label whether it lies in more than one.

    The folds are dealt label by label, so that leaving one out leaves something of every label that has
    images which are no near-duplicates.
    """
    n = len(codes)
    graph = coo_array((np.ones(pairs.shape[1], np.int8), (pairs[0], pairs[1])), shape=(n, n))
    number, component = connected_components(graph, directed=False)
    if number < 2:
        raise CorpusError("the encoder gives all images nearly the same vector, so nothing can be calibrated")
    _, first = np.unique(component, return_index=True)
    label_of = codes[first]  # of each component; one across labels counts for that of its first image
    fold_of = np.empty(number, np.int64)
    for label in np.unique(label_of):
        members = np.flatnonzero(label_of == label)
        fold_of[members] = (_dealt(len(members), _FOLDS, rng) + rng.integers(_FOLDS)) % _FOLDS
    has_others = np.bincount(label_of, minlength=int(codes.max()) + 1) > 1
    return fold_of[component], has_others


def _left_out(
    spaces: Sequence[Vectors], codes: IntArray, labels: int, part_of: IntArray, parts: int
) -> Iterator[tuple[Reference, ...]]:
    """Per part the references of everything else."""
    moments = [
        [Moments.of(space.blocks(codes, part_of == part), labels, space.dim) for part in range(parts)]
        for space in spaces
    ]
    totals = [sum(each[1:], start=each[0]) for each in moments]
    for part in range(parts):
        rest = [total - each[part] for total, each in zip(totals, moments, strict=True)]
        yield tuple(fit_reference(m) for m in rest)


def _parts(
    vectors: tuple[FloatArray, ...],
    neighbours: tuple[FloatArray, IntArray],
    part_of: IntArray,
    references: Iterator[tuple[Reference, ...]],
) -> Iterator[Fold]:
    for number, fitted in enumerate(references):
        places = np.flatnonzero(part_of == number)
        if places.size:
            queries = Queries(tuple(v[places] for v in vectors), neighbours[0][places], neighbours[1][places])
            yield Fold(places, queries, fitted)
