"""Neighbours to evidence per label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmm_classifier.types import FloatArray, Scores

DEFAULT_TEMPERATURE = 0.07
"""Softmax temperature of the vote: the k-NN protocol of DINO (Caron et al., ICCV 2021) and DINOv2."""


def weighted_vote(
    similarity: FloatArray, labels: Sequence[Sequence[str]], temperature: float = DEFAULT_TEMPERATURE
) -> Scores:
    """Share out the similarity of the neighbours among their labels.

    A neighbour's weight is softmax(similarity / temperature) over the neighbours that are really there,
    so weights sum to 1 whatever k. The evidence of a label is the sum over its neighbours of
    weight x similarity (negative similarities count as 0).

    Two classes that share near neighbours thus have little evidence each but a large sum, and an image
    far from everything has a small sum: ambiguity and novelty stay apart.

    Args:
        similarity: float32 (r, k), cosine, best first; entries beyond the labels of a row are padding.
        labels: r sequences of at most k labels.
        temperature: > 0; small trusts the nearest neighbour, large counts heads.

    Returns:
        Scores over the sorted labels that occur; no neighbours at all gives r rows of no labels.
    """
    names = sorted({label for row in labels for label in row})
    column = {name: j for j, name in enumerate(names)}
    values = np.zeros((len(labels), len(names)), np.float32)
    for i, row in enumerate(labels):
        if not row:
            continue
        near = similarity[i, : len(row)].astype(np.float64)
        weight = np.exp((near - near.max()) / temperature)
        evidence = weight / weight.sum() * near.clip(0, 1)
        np.add.at(values[i], [column[label] for label in row], evidence)
    return Scores(tuple(names), values.clip(0, 1))
