"""From vectors and neighbours to a probability per label: the heads, and their calibrated average.

A head is a function of the queries, of what the corpus says in closed form, and of the settings. All answer
alike, so any of them, or several averaged, can decide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lmm_classifier.decision.reference import Reference
from lmm_classifier.types import BoolArray, FloatArray, IntArray

MOST_DOUBT = 1e-3
"""Least probability a head gives a label. A vote of k neighbours says 0 of every label that none of them has,
which a logarithm would make a veto."""


@dataclass(frozen=True, slots=True, eq=False)
class Queries:
    """What is known of n queries before a label is decided.

    Attributes:
        vectors: per encoder float32 (n, d), unit rows; the neighbours were searched by the first.
        similarity: float32 (n, k), cosine, best first.
        codes: int64 (n, k), labels of the neighbours as columns in [0, c); -1 pads.
    """

    vectors: tuple[FloatArray, ...]
    similarity: FloatArray
    codes: IntArray

    def __len__(self) -> int:
        return len(self.similarity)


@dataclass(frozen=True, slots=True)
class HeadSettings:
    """How the label is decided.

    Attributes:
        weights: head -> weight of its log-probabilities, above 0. A head of the second encoder has "#1"
            after its name, and so on.
        k: neighbours that vote, at most as many as are retrieved.
        temperature: of the vote, as in `weighted_vote`.
        balance: g in [0, 1]: a label's vote is divided by (images of it)^g, against frequent labels.
        prototype_temperature: of the softmax over cosines to the labels' mean directions.
    """

    weights: Mapping[str, float]
    k: int
    temperature: float
    balance: float = 0.0
    prototype_temperature: float = 0.05


def knn(queries: Queries, reference: Reference, encoder: int, settings: HeadSettings) -> FloatArray:  # noqa: ARG001
    """Neighbours vote, each weighted by softmax(similarity / temperature); float32 (n, c), rows sum to 1."""
    votes = neighbour_votes(queries, len(reference.counts), settings.k, settings.temperature)
    if settings.balance:
        votes = np.asarray(votes / np.maximum(reference.counts, 1) ** settings.balance, np.float32)
    total = votes.sum(axis=1, keepdims=True)
    return np.asarray(
        np.where(total > 0, votes / np.where(total > 0, total, 1), 1 / votes.shape[1]), np.float32
    )


def prototype(queries: Queries, reference: Reference, encoder: int, settings: HeadSettings) -> FloatArray:
    """Softmax over cosines to the labels' mean directions; float32 (n, c), rows sum to 1."""
    cosine = queries.vectors[encoder] @ reference.prototypes.T
    logits = cosine / np.float32(settings.prototype_temperature)
    return softmax(np.where(reference.counts > 0, logits, np.float32(-np.inf)))


def gda(queries: Queries, reference: Reference, encoder: int, settings: HeadSettings) -> FloatArray:  # noqa: ARG001
    """Gaussian discriminant analysis: posterior under one Gaussian per label; float32 (n, c), rows sum to 1.

    All share the covariance, so this is linear discriminant analysis with shrinkage.
    """
    projected = reference.project(queries.vectors[encoder])
    logits = reference.log_prior - reference.squared_distances(projected) / 2
    return softmax(np.asarray(logits, np.float32))


Head = Callable[[Queries, Reference, int, HeadSettings], FloatArray]
HEADS: Mapping[str, Head] = {"knn": knn, "prototype": prototype, "gda": gda}
OF_NEIGHBOURS = frozenset({"knn"})
"""Heads that need neighbours, and so speak for the one encoder that is searched by."""
FUSION = "fusion"
"""The name of several heads together: the weighted mean of their log-probabilities."""


def _split_name(name: str) -> tuple[Head, int]:
    """The head and the number of the encoder that a name such as "gda" or "gda#1" means."""
    head, _, encoder = name.partition("#")
    return HEADS[head], int(encoder or 0)


def head_probabilities(
    queries: Queries, references: Sequence[Reference], settings: HeadSettings
) -> FloatArray:
    """The weighted mean of the heads' log-probabilities, as probabilities.

    Args:
        queries: n of them.
        references: one per encoder of the queries.
        settings: which heads, and how.

    Returns:
        float32 (n, c), rows sum to 1. A label without images has 0.
    """
    total = np.zeros((len(queries), len(references[0].counts)), np.float32)
    for name, weight in settings.weights.items():
        head, encoder = _split_name(name)
        total += np.float32(weight) * log_probabilities(head(queries, references[encoder], encoder, settings))
    return softmax(np.where(references[0].counts > 0, total, np.float32(-np.inf)))


def log_probabilities(probabilities: FloatArray) -> FloatArray:
    """Natural logarithms that no single head can veto with: see MOST_DOUBT."""
    labels = probabilities.shape[1]
    return np.asarray(np.log((1 - MOST_DOUBT) * probabilities + MOST_DOUBT / labels), np.float32)


def neighbour_votes(queries: Queries, labels: int, k: int, temperature: float) -> FloatArray:
    """Softmax weights of the k nearest neighbours, added up per label; float32 (n, c)."""
    codes, similarity = queries.codes[:, :k], queries.similarity[:, :k]
    there = codes >= 0
    weights = softmax(np.where(there, similarity / np.float32(temperature), np.float32(-np.inf)))
    return per_label(weights, codes, there, labels)


def per_label(values: FloatArray, codes: IntArray, there: BoolArray, labels: int) -> FloatArray:
    """Add up values (n, k) by the label (n, k) they belong to, where `there`; float32 (n, c)."""
    cells = np.arange(len(codes))[:, None] * labels + codes
    sums = np.bincount(cells[there], values[there], minlength=len(codes) * labels)
    return sums.reshape(len(codes), labels).astype(np.float32)


def softmax(logits: FloatArray) -> FloatArray:
    """Softmax over the last axis; -inf is probability 0, and a row of nothing else is all 0."""
    top = logits.max(axis=-1, keepdims=True, initial=-np.inf)
    weights = np.exp(logits - np.where(np.isfinite(top), top, 0))
    total = weights.sum(axis=-1, keepdims=True)
    return np.asarray(weights / np.where(total > 0, total, 1), np.float32)
