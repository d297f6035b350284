"""Photos that no label fits, gathered into groups that may deserve one.

Groups are merged by average linkage (cosine) of the whitened vectors, and the tree is cut where the mean
silhouette is highest, photos in groups too small to propose counting as 0. The known labels stand by as
further groups that nothing can join: they make one group alone comparable with several, and a photo that is
nearer to a known label than to its own group counts against the cut.

Measured on flowers12, 6 splits into 9 known and 3 unknown species (`benchmarks/labelling.py proposals`), as
the adjusted Rand index over the truly unknown photos among those called unknown: .865, and .94 on four
splits more. Without the known labels standing by .89 and .94, but a single species is then always taken
apart. In the same whitened space Ward's linkage, cut at the highest silhouette, gets .64; average linkage
cut by the Calinski-Harabasz index .95, but .60 on the four.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage

from lmm_classifier.decision.reference import Reference
from lmm_classifier.types import BoolArray, Float64Array, FloatArray, IntArray

SMALLEST = 5
"""Photos of a group, at least: of four that are shown to a reviewer, one more is won."""
MOST_COMPARED = 4000
"""Photos that are merged, every pair of them compared: 64 MB of distances. Others join the nearest group."""
_CUTS = 64
"""Heights at which the tree is cut, evenly spaced."""
_REPRESENTATIVES = 4
"""Photos that stand for a group. Of 3, 4 and 6, 3 and 4 need the fewest looks on flowers12."""
_NEAREST = 3


@dataclass(frozen=True, slots=True, eq=False)
class Proposal:
    """A group of unknown photos that are alike.

    Attributes:
        members: int64 (m,), rows of the photos, those nearest to the middle first.
        representatives: int64, at most REPRESENTATIVES of them, evenly spaced from the middle to the edge: if
            these show the same, so do probably those between.
        cohesion: mean silhouette in [-1, 1]: 1 is a tight group far from all others and from known labels.
        nearest: known labels and the cosine of the group's middle to their prototypes, highest first.
    """

    members: IntArray
    representatives: IntArray
    cohesion: float
    nearest: tuple[tuple[str, float], ...]


def propose(
    vectors: FloatArray,
    reference: Reference,
    labels: Sequence[str],
    *,
    smallest: int = SMALLEST,
    seed: int = 0,
) -> tuple[Proposal, ...]:
    """Group unknown photos by what tells the known labels apart.

    Args:
        vectors: float32 (n, d), unit rows of the unknown photos.
        reference: of the corpus, by the same encoder. Directions in which photos of one label vary are
            shrunk as it says, so that what remains is mostly what labels differ in.
        labels: the c labels of the reference.
        smallest: photos of a group, at least 2; those of a smaller one are stragglers and left alone.
        seed: of the choice where there are too many photos to compare all pairs.

    Returns:
        the groups, largest first; rows of stragglers are in none. Equal calls give equal groups.

    Raises:
        ValueError: vectors of another dimension than the reference, or another number of labels.
    """
    if vectors.ndim != 2 or vectors.shape[1] != len(reference.mean):
        raise ValueError(f"vectors must be (n, {len(reference.mean)}), got {vectors.shape}")
    if len(labels) != len(reference.counts):
        raise ValueError(f"the reference has {len(reference.counts)} labels, got {len(labels)}")
    smallest = max(smallest, 2)
    if len(vectors) < smallest:
        return ()
    seen = whitened(vectors, reference)
    known = _known(reference)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(seen))[:MOST_COMPARED])
    codes, height = _grouped(seen[chosen], known, smallest)
    middles = _means(seen[chosen], codes)
    placed = np.full(len(seen), -1, np.int64)
    placed[chosen] = codes
    if len(middles) and len(chosen) < len(seen):
        others = np.setdiff1d(np.arange(len(seen)), chosen)
        placed[others] = _joining(seen[others], middles, known, height)
    groups = [np.flatnonzero(placed == code) for code in range(len(middles))]
    silhouettes = _silhouettes(seen, placed, _means(seen, placed), known)
    found = [_proposal(members, seen, silhouettes, vectors, reference, labels) for members in groups]
    return tuple(sorted(found, key=lambda proposal: (-len(proposal.members), proposal.members[0])))


def whitened(vectors: FloatArray, reference: Reference) -> FloatArray:
    """Vectors (n, d) where the labels' shared covariance is the identity, as unit rows, float32 (n, d)."""
    return _unit((vectors - reference.mean) @ reference.whitening)


def _known(reference: Reference) -> FloatArray:
    """The directions of the known labels' means, whitened: float32 (c, d); 0 for one at the mean of all."""
    projection, whitening = (a.astype(np.float64) for a in (reference.projection, reference.whitening))
    directions = np.linalg.solve(whitening, projection)  # (d, r), orthonormal
    return _unit((reference.centres @ directions.T)[reference.counts > 0])


def _grouped(seen: FloatArray, known: FloatArray, smallest: int) -> tuple[IntArray, float]:
    """The group (n,) of each photo, from 0, -1 for stragglers, and the cosine distance of the cut."""
    tree = linkage(seen.astype(np.float64), "average", "cosine")
    tree[:, 2] = np.maximum.accumulate(tree[:, 2].clip(0))  # equal photos: rounding goes below 0
    best, found, cut = -np.inf, np.full(len(seen), -1, np.int64), 0.0
    for height in np.linspace(tree[0, 2], tree[-1, 2], _CUTS).tolist():
        codes = _sizeable(fcluster(tree, height, "distance"), smallest)
        if codes.max() < 0:
            continue
        worth = float(_silhouettes(seen, codes, _means(seen, codes), known).mean())
        if worth > best:
            best, found, cut = worth, codes, height
    return found, cut


def _sizeable(clusters: IntArray, smallest: int) -> IntArray:
    """The same clusters numbered from 0 by their first photo, those that are too small as -1."""
    _, first, inverse, counts = np.unique(
        clusters, return_index=True, return_inverse=True, return_counts=True
    )
    kept = [i for i in np.argsort(first).tolist() if counts[i] >= smallest]
    number = np.full(len(counts), -1, np.int64)
    number[kept] = np.arange(len(kept))
    return np.asarray(number[inverse], np.int64)


def _means(seen: FloatArray, codes: IntArray) -> FloatArray:
    """The mean of each group, float32 (groups, d): its product with a photo is their mean cosine."""
    inside = codes >= 0
    groups = int(codes.max(initial=-1)) + 1
    members = np.zeros((groups, len(seen)), np.float32)
    members[codes[inside], np.flatnonzero(inside)] = 1
    return np.asarray(members @ seen / members.sum(axis=1, keepdims=True), np.float32)


def _silhouettes(seen: FloatArray, codes: IntArray, means: FloatArray, known: FloatArray) -> Float64Array:
    """Silhouette (n,) of each photo by cosine distance; 0 for stragglers.

    A known label counts as a group as tight as the photo's own.
    """
    values, inside = np.zeros(len(seen)), codes >= 0
    if not inside.any():
        return values
    own, photos = codes[inside], seen[inside]
    sizes = np.bincount(own)[own]
    cosine = (photos @ means.T).astype(np.float64)
    rows = np.arange(len(own))
    near = (cosine[rows, own] * sizes - 1) / (sizes - 1)  # the photo itself left out
    cosine[rows, own] = -1
    tightness = np.linalg.norm(means, axis=1)[own]
    to_known = (photos @ known.T).max(axis=1, initial=-1) * tightness
    a, b = (1 - near).clip(0), (1 - np.maximum(cosine.max(axis=1), to_known)).clip(0)
    values[inside] = (b - a) / np.maximum(np.maximum(a, b), np.finfo(np.float32).eps)
    return values


def _joining(seen: FloatArray, means: FloatArray, known: FloatArray, height: float) -> IntArray:
    """The group (n,) each photo is nearest to, -1 where it is too far or a known label is near."""
    nearest = (seen @ means.T).argmax(axis=1)
    far = 1 - (seen * means[nearest]).sum(axis=1) > height
    tightness = np.linalg.norm(means, axis=1)[nearest]
    strange: BoolArray = far | ((seen @ known.T).max(axis=1, initial=-1) * tightness > 1 - height)
    return np.where(strange, -1, nearest).astype(np.int64)


def _proposal(
    members: IntArray,
    seen: FloatArray,
    silhouettes: Float64Array,
    vectors: FloatArray,
    reference: Reference,
    labels: Sequence[str],
) -> Proposal:
    near = seen[members] @ seen[members].mean(axis=0)
    members = members[np.argsort(-near, kind="stable")]
    shown = np.unique(
        np.linspace(0, len(members) - 1, min(_REPRESENTATIVES, len(members))).round().astype(int)
    )
    similarity = reference.prototypes @ _unit(vectors[members].mean(axis=0))
    there = np.flatnonzero(reference.counts > 0)
    best = there[np.argsort(-similarity[there], kind="stable")][:_NEAREST]
    return Proposal(
        members,
        members[shown],
        float(silhouettes[members].mean()),
        tuple((labels[i], float(similarity[i])) for i in best.tolist()),
    )


def _unit(rows: FloatArray | Float64Array) -> FloatArray:
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(rows / np.where(lengths > 0, lengths, 1), np.float32)
