"""Split-conformal cuts: thresholds that keep an asked share of whatever resembles the calibration data.

All hold for images that are exchangeable with those calibrated on, on average over calibration sets, and make
no other assumption. Higher is more known, or more probable.
"""

from __future__ import annotations

import numpy as np

from lmm_classifier.types import BoolArray, Float64Array, FloatArray


def keeping_cut(known: Float64Array, keep: float) -> float:
    """The highest cut that at least a share `keep` of new known images reach.

    Of n calibrated images and a new one, each is equally likely to be the r-th least known; so a new one is
    below the r-th of the n with probability r / (n + 1) at most. r = floor((n + 1) (1 - keep)); where that
    is 0, there are too few images to reject any at this target, and the cut is -inf.

    Args:
        known: (n,), scores of known images.
        keep: in (0, 1).
    """
    rank = int(np.floor((len(known) + 1) * (1 - keep) + 1e-9))
    return float(np.sort(known)[rank - 1]) if rank else -np.inf


def p_values(known: Float64Array, scores: Float64Array) -> Float64Array:
    """Share of known images that look at most as known as each of (n,) scores, the image itself counted in.

    Uniform, or larger, for images like those calibrated on: P(p <= a) <= a.

    Args:
        known: (m,), scores of the calibrated images, ascending.
        scores: (n,).
    """
    return np.asarray((1 + np.searchsorted(known, scores, side="right")) / (len(known) + 1))


def set_cut(true_probabilities: Float64Array, coverage: float) -> float:
    """The probability from which a label belongs to the conformal set, so that the true one is in it.

    Least ambiguous set-valued classifier (Sadinle et al., JASA 2019): one cut for all labels.

    Args:
        true_probabilities: (n,), what each calibrated image gives its true label.
        coverage: share of images whose set is to hold the true label, in (0, 1).

    Returns:
        in [0, 1]. Of few images it is the least of their probabilities, which vouches for a coverage of
        n / (n + 1) and no more.
    """
    rank = int(np.floor((len(true_probabilities) + 1) * (1 - coverage) + 1e-9))
    return float(np.sort(true_probabilities)[max(rank, 1) - 1])


def conformal_sets(probabilities: FloatArray, cut: float) -> BoolArray:
    """Which labels reach the cut; the most probable always does. bool (n, c).

    LAC alone may leave a set empty. That would be about ambiguity and yet read as "no label fits", which is
    for the novelty gate to say; holding one label more never lowers the coverage.
    """
    sets: BoolArray = probabilities >= cut
    sets[np.arange(len(sets)), probabilities.argmax(axis=1)] = True
    return sets
