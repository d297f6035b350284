"""How known a query looks: the single scores, and their learned combination. Higher is more known.

All are computed from the vectors alone, for all queries at once. Which of them tells known from unknown best
depends on encoder and corpus, so `calibrate` measures them on labels it holds out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lmm_classifier.decision.heads import HeadSettings, Queries, neighbour_votes, per_label
from lmm_classifier.decision.reference import Reference
from lmm_classifier.types import Float64Array, FloatArray, IntArray

_NEAREST_OF_LABEL = 3
"""Neighbours of one label whose mean similarity says how near the label is: one alone may be mislabelled."""


@dataclass(frozen=True, slots=True, eq=False)
class NoveltyInputs:
    """A batch of queries before one encoder's reference, and what several scores need of it.

    Attributes:
        queries, reference, encoder, settings: as the heads take them.
        projected: float32 (n, r), the queries among the directions in which the labels differ.
        distances: float32 (n, c), squared, to each label's mean; infinite for a label without images.
    """

    queries: Queries
    reference: Reference
    encoder: int
    settings: HeadSettings
    projected: FloatArray
    distances: FloatArray


def max_similarity(look: NoveltyInputs) -> FloatArray:
    """Cosine similarity of the nearest neighbour."""
    return _similarity(look)[:, 0]


def kth_similarity(look: NoveltyInputs) -> FloatArray:
    """Cosine similarity of the last neighbour looked at (Sun et al., ICML 2022, as a similarity)."""
    return _similarity(look)[:, -1]


def class_margin(look: NoveltyInputs) -> FloatArray:
    """How much nearer the nearest label is than the second: of each the mean over its nearest neighbours."""
    queries = look.queries
    there = queries.codes >= 0
    labels = len(look.reference.counts)
    rank = _rank_within_label(queries)
    first = there & (rank < _NEAREST_OF_LABEL)
    sums = per_label(queries.similarity, queries.codes, first, labels)
    counts = per_label(np.ones_like(queries.similarity), queries.codes, first, labels)
    farthest = _similarity(look)[:, -1:]  # a label among none of the neighbours is no nearer than the last
    near = np.where(
        counts > 0, (sums + (_NEAREST_OF_LABEL - counts) * farthest) / _NEAREST_OF_LABEL, farthest
    )
    if labels == 1:
        return near[:, 0]
    best = np.partition(near, -2, axis=1)
    return np.asarray(best[:, -1] - best[:, -2], np.float32)


def vote_entropy(look: NoveltyInputs) -> FloatArray:
    """Negative entropy of the neighbours' vote, in nats: 0 where all agree."""
    votes = neighbour_votes(
        look.queries, len(look.reference.counts), look.settings.k, look.settings.temperature
    )
    return np.asarray((votes * np.log(votes.clip(1e-12))).sum(axis=1), np.float32)


def guided_knn(look: NoveltyInputs) -> FloatArray:
    """Mean similarity of the neighbours times the best label's share of the vote.

    After NNGuide (Park et al., ICCV 2023), with the vote in place of a classifier's energy.
    """
    labels = len(look.reference.counts)
    votes = neighbour_votes(look.queries, labels, look.settings.k, look.settings.temperature)
    return np.asarray(votes.max(axis=1) * _similarity(look).mean(axis=1), np.float32)


def prototype_similarity(look: NoveltyInputs) -> FloatArray:
    """Cosine similarity to the mean direction of the nearest label."""
    return np.asarray(_to_prototypes(look).max(axis=1), np.float32)


def prototype_margin(look: NoveltyInputs) -> FloatArray:
    """How much nearer the nearest mean direction is than the second, over all labels."""
    cosine = _to_prototypes(look)
    if cosine.shape[1] == 1:
        return cosine[:, 0]
    best = np.partition(cosine, -2, axis=1)
    return np.asarray(best[:, -1] - best[:, -2], np.float32)


def mahalanobis(look: NoveltyInputs) -> FloatArray:
    """Negative half squared Mahalanobis distance to the nearest label (Lee et al., NeurIPS 2018)."""
    reference = look.reference
    centred = look.queries.vectors[look.encoder] - reference.mean
    everywhere = ((centred @ reference.whitening) ** 2).sum(axis=1)
    elsewhere = everywhere - (look.projected**2).sum(axis=1)  # where the labels do not differ
    return np.asarray(-(look.distances.min(axis=1) + elsewhere) / 2, np.float32)


def relative_mahalanobis(look: NoveltyInputs) -> FloatArray:
    """The same, relative to the Gaussian of all images (Ren et al., 2021): what all labels share cancels."""
    background = (look.projected**2 / look.reference.spread).sum(axis=1)
    return np.asarray((background - look.distances.min(axis=1)) / 2, np.float32)


def gda_energy(look: NoveltyInputs) -> FloatArray:
    """Log-sum-exp of the linear discriminants (energy score: Liu et al., NeurIPS 2020)."""
    logits = (look.projected**2).sum(axis=1)[:, None] / 2 - look.distances / 2 + look.reference.log_prior
    top = logits.max(axis=1)
    return np.asarray(top + np.log(np.exp(logits - top[:, None]).sum(axis=1)), np.float32)


_Score = Callable[[NoveltyInputs], FloatArray]
FROM_NEIGHBOURS: Mapping[str, _Score] = {
    "max_similarity": max_similarity,
    "kth_similarity": kth_similarity,
    "class_margin": class_margin,
    "vote_entropy": vote_entropy,
    "guided_knn": guided_knn,
}
FROM_REFERENCE: Mapping[str, _Score] = {
    "prototype_similarity": prototype_similarity,
    "prototype_margin": prototype_margin,
    "mahalanobis": mahalanobis,
    "relative_mahalanobis": relative_mahalanobis,
    "gda_energy": gda_energy,
}
OF_TWO_LABELS = frozenset(
    {
        "class_margin",
        "vote_entropy",
        "guided_knn",
        "prototype_margin",
        "relative_mahalanobis",
        "gda_energy",
    }
)
"""Scores that compare labels, and say nothing where there is but one."""
SCORES: Mapping[str, _Score] = {**FROM_NEIGHBOURS, **FROM_REFERENCE}


def novelty_scores(
    names: Sequence[str], queries: Queries, references: Sequence[Reference], settings: HeadSettings
) -> FloatArray:
    """The named scores of all queries, float32 (n, len(names)).

    Args:
        names: of SCORES; of those FROM_REFERENCE with "#1" for the second encoder, and so on.
        queries: n of them.
        references: one per encoder.
        settings: k and temperature of the vote.
    """
    looks: dict[int, NoveltyInputs] = {}
    columns = []
    for name in names:
        score, _, number = name.partition("#")
        encoder = int(number or 0)
        if encoder not in looks:
            looks[encoder] = _look(queries, references[encoder], encoder, settings)
        columns.append(SCORES[score](looks[encoder]))
    return np.stack(columns, axis=1)


@dataclass(frozen=True, slots=True)
class Combination:
    """A logistic model over novelty scores; over one alone it only maps it to [0, 1].

    Attributes:
        names: the scores, as `novelty_scores` takes them.
        means, scales: per score, what it is centred and divided by.
        weights, bias: of the centred and scaled scores.
    """

    names: tuple[str, ...]
    means: tuple[float, ...]
    scales: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float

    def logits(self, scores: FloatArray) -> Float64Array:
        """Log-odds of being known against being of a label that was held out, float64 (n,).

        Args:
            scores: float32 (n, len(names)).
        """
        centred = (scores.astype(np.float64) - np.asarray(self.means)) / np.asarray(self.scales)
        return np.asarray(centred @ np.asarray(self.weights) + self.bias)

    def known(self, scores: FloatArray) -> Float64Array:
        """The same as a probability, float64 (n,), were both kinds equally common."""
        return np.asarray(1 / (1 + np.exp(-self.logits(scores).clip(-60, 60))), np.float64)


def _look(queries: Queries, reference: Reference, encoder: int, settings: HeadSettings) -> NoveltyInputs:
    projected = reference.project(queries.vectors[encoder])
    distances = np.where(reference.counts > 0, reference.squared_distances(projected), np.inf)
    return NoveltyInputs(queries, reference, encoder, settings, projected, np.asarray(distances, np.float32))


def _similarity(look: NoveltyInputs) -> FloatArray:
    """float32 (n, k); padding is as far as can be."""
    return np.where(look.queries.codes >= 0, look.queries.similarity, np.float32(-1))


def _to_prototypes(look: NoveltyInputs) -> FloatArray:
    """float32 (n, c); a label without images is as far as can be."""
    cosine = look.queries.vectors[look.encoder] @ look.reference.prototypes.T
    return np.where(look.reference.counts > 0, cosine, np.float32(-1))


def _rank_within_label(queries: Queries) -> IntArray:
    """Per neighbour, how many nearer ones have its label; int64 (n, k)."""
    same = queries.codes[:, :, None] == queries.codes[:, None, :]
    earlier = np.tri(queries.codes.shape[1], k=-1, dtype=bool)
    return np.asarray((same & earlier).sum(axis=2), np.int64)
