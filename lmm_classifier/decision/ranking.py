"""From a probability per class to the classes worth naming."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmm_classifier.types import FloatArray, LabelScore


def ranked(
    probabilities: FloatArray, names: Sequence[Sequence[str]], top_k: int | None, min_score: float
) -> tuple[LabelScore, ...]:
    """The best classes, best first, ties in the order of the classes.

    Args:
        probabilities: float32 (c,) in [0, 1].
        names: per class, its names; the first becomes the label, the others its synonyms.
        top_k: at most so many; None for all.
        min_score: leave out the classes below.
    """
    order = np.argsort(-probabilities, kind="stable")[:top_k]
    return tuple(
        LabelScore(names[i][0], float(probabilities[i]), tuple(names[i][1:]))
        for i in order
        if probabilities[i] >= min_score
    )
