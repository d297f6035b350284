"""Photos that no label fits, gathered into groups that may deserve one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.metrics import silhouette_score

from lmm_classifier.decision.reference import Reference
from lmm_classifier.types import Float64Array, FloatArray, IntArray

MOST_GROUPS = 30
MOST_COMPARED = 4000  # photos that are grouped; every pair of them is compared. Others join the nearest group
REPRESENTATIVES = 6
NEAREST = 3


@dataclass(frozen=True, slots=True, eq=False)
class Proposal:
    """A group of unknown photos that are alike.

    Attributes:
        members: int64 (m,), rows of the photos, those nearest to the middle first.
        representatives: the first few of them.
        cohesion: mean silhouette in [-1, 1]: 1 is a tight group far from all others.
        nearest: known labels and the cosine of the group's middle to their prototypes, highest first.
    """

    members: IntArray
    representatives: IntArray
    cohesion: float
    nearest: tuple[tuple[str, float], ...]


def propose(
    vectors: FloatArray, reference: Reference, labels: Sequence[str], *, smallest: int = 5, seed: int = 0
) -> tuple[Proposal, ...]:
    """Group unknown photos by what tells the known labels apart.

    Directions in which photos of one label vary are shrunk as the corpus says, so that what remains is
    mostly what two labels differ in; groups are merged by Ward's criterion, and there are as many as give
    the highest mean silhouette.

    Args:
        vectors: float32 (n, d), unit rows of the unknown photos.
        reference: of the corpus, by the same encoder.
        labels: the c labels of the reference.
        smallest: photos of a group, at least; what is in a smaller one is left alone, as is a photo that is
            nearer to another group than to its own.
        seed: of the choice where there are too many photos to compare all pairs.

    Returns:
        the groups, largest first; none where fewer than 2 * smallest photos are given.
    """
    if len(vectors) < 2 * smallest:
        return ()
    seen = _unit((vectors - reference.mean) @ reference.whitening)
    compared = seen[np.sort(np.random.default_rng(seed).permutation(len(seen))[:MOST_COMPARED])]
    codes = _grouped(compared, smallest)
    middles = _unit(np.stack([compared[codes == code].mean(axis=0) for code in np.unique(codes)]))
    near = seen @ middles.T  # (n, groups)
    nearest, silhouettes = near.argmax(axis=1), _silhouettes(near)
    found = []
    for code in range(len(middles)):
        members = np.flatnonzero((nearest == code) & (silhouettes > 0))
        if len(members) >= smallest:
            members = members[np.argsort(-near[members, code], kind="stable")]
            found.append(_proposal(members, silhouettes, vectors, reference, labels))
    return tuple(sorted(found, key=lambda proposal: -len(proposal.members)))


def _grouped(seen: FloatArray, smallest: int) -> IntArray:
    """The group (n,) of each photo, from 0; as many groups as fit the photos best."""
    tree = linkage(seen.astype(np.float64), "ward")
    most = min(MOST_GROUPS, len(seen) // smallest)
    cuts = [fcluster(tree, n, "maxclust") - 1 for n in range(2, most + 1)]
    fits = [silhouette_score(seen, codes) if codes.max() else -1.0 for codes in cuts]
    return np.asarray(cuts[int(np.argmax(fits))], np.int64)


def _silhouettes(near: FloatArray) -> Float64Array:
    """How much nearer each photo (n,) is to its own group than to the next one, in [-1, 1]."""
    if near.shape[1] < 2:
        return np.ones(len(near))
    next_, own = np.sort(1 - near.astype(np.float64), axis=1)[:, 1::-1].T
    return (next_ - own) / np.maximum(np.maximum(next_, own), np.finfo(np.float64).tiny)


def _proposal(
    members: IntArray,
    silhouettes: Float64Array,
    vectors: FloatArray,
    reference: Reference,
    labels: Sequence[str],
) -> Proposal:
    similarity = reference.prototypes @ _unit(vectors[members].mean(axis=0))
    best = np.argsort(-similarity, kind="stable")[:NEAREST]
    return Proposal(
        members,
        members[:REPRESENTATIVES],
        float(silhouettes[members].mean()),
        tuple((labels[i], float(similarity[i])) for i in best),
    )


def _unit(rows: FloatArray) -> FloatArray:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), np.float32)
