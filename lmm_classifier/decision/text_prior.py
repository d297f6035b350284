"""What the names of the labels say about an image, beside what their images say."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from lmm_classifier.types import FloatArray, Scores

DEFAULT_TEXT_TEMPERATURE = 0.01
"""CLIP learns the scale of its cosines and clips it at 100 (Radford et al., ICML 2021, section 2.5)."""


def text_probabilities(
    images: FloatArray, texts: FloatArray, temperature: float = DEFAULT_TEXT_TEMPERATURE
) -> FloatArray:
    """Zero-shot classification: softmax(cosine / temperature) over the labels.

    Args:
        images: float32 (r, d), unit rows.
        texts: float32 (c, d), unit rows of the same encoder, one per label; c > 0.
        temperature: > 0.

    Returns:
        float32 (r, c) in [0, 1]; rows sum to 1.
    """
    cosine = images.astype(np.float64) @ texts.astype(np.float64).T  # rounding is divided by temperature
    weight = np.exp((cosine - cosine.max(axis=1, keepdims=True)) / temperature)
    return np.asarray(weight / weight.sum(axis=1, keepdims=True), np.float32)


def with_text_prior(
    scores: Scores,
    probabilities: FloatArray,
    labels: Sequence[str],
    with_images: Collection[str],
    weight: float,
) -> Scores:
    """Mix what the texts say into the evidence of the vote.

    With v the evidence and s its sum, the closeness; w the weight, p the probability from text:

        a label with images     (1 - w) v + w p s
        a label without         w p

    Probabilities sum to 1 over whatever labels there are, so they say which label, never whether any of
    them fits. Among the labels with images they therefore only share out anew the closeness that the
    images give. (Added as they are, they would lift the closeness of every image by the same rule: a
    fixed cut would let all pass, a fitted one move along.) A label without images has no closeness that
    could speak against it, and takes its share in full. If q is the probability of all labels without
    images, the sum becomes s + w q (1 - s): in [0, 1], never below s, and s itself where every label has
    images. Where a calibration says how known a photo looks, that is lifted in the same way, and the values,
    which sum to 1, stay probabilities. A photo that is far from all images is thus near if a name alone
    explains it.

    Args:
        scores: of the vote, values (r, c).
        probabilities: float32 (r, t), rows sum to 1.
        labels: the t labels they are of, without repetition.
        with_images: labels that the index has images of, whether or not any is a neighbour.
        weight: w in [0, 1].

    Returns:
        Scores over the labels of either, sorted; a label that neither neighbour nor text speaks for has 0.
    """
    names = sorted({*scores.labels, *labels})
    column = {name: j for j, name in enumerate(names)}
    vote, text = np.zeros((2, len(scores.values), len(names)))  # (r, names)
    vote[:, [column[name] for name in scores.labels]] = scores.values
    text[:, [column[name] for name in labels]] = probabilities
    pictured = np.asarray([name in with_images for name in names])
    total = vote.sum(axis=1, keepdims=True).clip(0, 1)  # (r, 1); rounding may carry it past 1
    values = (1 - weight) * vote + weight * text * np.where(pictured, total, 1.0)
    known = scores.known
    if known is not None:
        by_name_alone = text[:, ~pictured].sum(axis=1)
        known = (known + weight * by_name_alone * (1 - known)).astype(np.float32)
    return Scores(tuple(names), values.clip(0, 1).astype(np.float32), known)
