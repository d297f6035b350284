"""What retrieval and a vision-language model say together about the options of an uncertain image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import softmax
from scipy.stats import entropy

from lmm_classifier.types import UNKNOWN, Choice, Float64Array, FloatArray, Status, Verdict, required

_MAJORITY = 0.5
"""A label that is given less than this is the best guess among the options, not more."""
LEAST = 1e-6  # probability that retrieval leaves to an option: none is vetoed


@dataclass(frozen=True, slots=True)
class Fusion:
    """Weights of the two log-probabilities, fitted on the uncertain part of simulated images.

    Attributes:
        retrieval, model: weights, at least 0. 1 and 1 is the product of two independent opinions.
        unknown: added for the option UNKNOWN.
        margin: log-odds over retrieval's own answer that another one needs; at least 0.
        scarce: there were too few cases to fit weights, so each opinion counts by how decided it is.
    """

    retrieval: float = 1.0
    model: float = 1.0
    unknown: float = 0.0
    margin: float = 0.0
    scarce: bool = False


def retrieval_probabilities(
    options: Sequence[str], labels: Sequence[str], values: FloatArray, closeness: float
) -> Float64Array:
    """What retrieval gives each option, float64 (options,), not normalised.

    Args:
        options: labels, UNKNOWN perhaps among them: none of the labels, unless it is one.
        labels: those of `values`.
        values: (c,), probability of each label if the image is of any.
        closeness: probability that it is.
    """
    column = {label: j for j, label in enumerate(labels)}
    given = [closeness * float(values[column[x]]) if x in column else 1 - closeness for x in options]
    return np.asarray(given, np.float64).clip(LEAST)


def certainty(retrieval: Float64Array, own: int) -> float:
    """How sure retrieval is of its `own` answer, in (0, 1]: its share of what all options are given."""
    return float(retrieval[own] / retrieval.sum())


def fused_logits(fusion: Fusion, choice: Choice, retrieval: Float64Array) -> Float64Array:
    """Log-odds of the options of a choice, up to a constant, float64 (options,)."""
    opinions = np.stack([np.log(retrieval), choice.log_likelihoods.astype(np.float64)])
    weights = _evidence(opinions) if fusion.scarce else np.asarray([fusion.retrieval, fusion.model])
    unknown = np.asarray([option == UNKNOWN for option in choice.options])
    return np.asarray(weights @ opinions + fusion.unknown * unknown)


def _evidence(opinions: Float64Array) -> Float64Array:
    """Weights (2,) of two opinions (2, options), in proportion to what each says; they sum to 2.

    An opinion says the more, the further its entropy is below that of no opinion.
    """
    shares = softmax(opinions, axis=1)
    said = 1 - entropy(shares, axis=1) / np.log(max(opinions.shape[1], 2))
    return np.asarray(2 * (said + LEAST) / (said + LEAST).sum())


def decided(fusion: Fusion, logits: Float64Array, own: int) -> int:
    """Which option is answered: the best one, where it leads retrieval's `own` by the margin."""
    best = int(np.argmax(logits))
    return best if logits[best] - logits[own] > fusion.margin or best == own else own


def reconsidered(
    old: Verdict, choice: Choice, retrieval: Float64Array, fusion: Fusion | None, allow_unknown: bool
) -> Verdict:
    """What the decision about a region becomes once a model has been asked.

    Args:
        old: retrieval's.
        choice: the model's opinion.
        retrieval: float64 (options,), of `retrieval_probabilities`.
        fusion: how both are weighed; None takes the model's alone.
        allow_unknown: whether the option UNKNOWN means none of the labels.
    """
    probabilities, who = choice.probabilities, "the model gives"
    best = max(probabilities, key=probabilities.__getitem__)
    if fusion is not None:
        logits = fused_logits(fusion, choice, retrieval)
        own = choice.options.index(required(old.label))
        best = choice.options[decided(fusion, logits, own)]
        fused = Choice(choice.options, np.asarray(logits - np.logaddexp.reduce(logits), np.float32))
        probabilities, who = fused.probabilities, "model and retrieval give"
    probability = probabilities[best]
    unknown = best == UNKNOWN and allow_unknown
    status: Status = "unknown" if unknown else "known" if probability >= _MAJORITY else "uncertain"
    return replace(
        old,
        status=status,
        label=None if unknown else best,
        score=probability,
        reason=f"{who} {best!r} {probability:.3f} among {len(probabilities)} options",
    )
