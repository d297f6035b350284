"""What a vision-language model gives a place in a list, whatever stands there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.special import softmax

from lmm_classifier.models.vlm.strategies import Case, rotations
from lmm_classifier.steps.rerank import Rerank
from lmm_classifier.types import Choice, Float64Array

MOST_CASES = 60
"""Cases asked in every order, at most: PriDe's authors found a twentieth to be enough."""
_SHARE = 0.25  # of the cases that come by, each with this probability
FEWEST_CASES = 8  # with a number of options, before a prior of it is believed


class ListBias:
    """Asks about some cases with the options in each place, and in reverse.

    Args:
        step: the reranker, without a calibration.
        rng: picks the cases.
    """

    def __init__(self, step: Rerank, rng: np.random.Generator) -> None:
        self._step = step
        self._once = replace(step, permutations=1)
        self._rng = rng
        self._places: defaultdict[int, list[Float64Array]] = defaultdict(list)
        self._flips: list[bool] = []

    def look_at(self, cases: Sequence[Case]) -> None:
        """Ask about some of the cases; of a reranker that asks no lists, about none.

        Raises:
            ModelError: the reranker failed.
        """
        if self._step.mode != "listwise":
            return
        for case in cases:
            if len(self._flips) < MOST_CASES and self._rng.random() < _SHARE:
                self._look_at(case)

    def prior(self) -> dict[int, tuple[float, ...]]:
        """Number of options -> log-probability of each place, where enough cases had so many."""
        return {
            n: tuple(np.log(np.mean(places, axis=0)).tolist())
            for n, places in sorted(self._places.items())
            if len(places) >= FEWEST_CASES
        }

    def flip_rate(self) -> float | None:
        """Share of the cases in which reversing the list changed the answer; None of none."""
        return float(np.mean(self._flips)) if self._flips else None

    def _look_at(self, case: Case) -> None:
        n = len(case.options)
        turned = [replace(case, options=tuple(case.options[i] for i in order)) for order in rotations(n)]
        given = [choice.log_likelihoods.astype(np.float64) for choice in self._once.choices(turned)]
        self._places[n].append(softmax(np.mean(given, axis=0)))
        straight, reverse = self._step.choices([case, replace(case, options=case.options[::-1])])
        self._flips.append(_best(straight) != _best(reverse))


def _best(choice: Choice) -> str:
    return choice.options[int(choice.log_likelihoods.argmax())]
