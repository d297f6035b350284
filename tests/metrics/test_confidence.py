"""Against scikit-learn, MAPIE and pytorch-ood where they share the convention, else by hand."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from mapie.metrics.calibration import expected_calibration_error as mapie_ece
from pytorch_ood.metrics import functional as oracle
from sklearn.metrics import brier_score_loss

from lmm_classifier.errors import ConfigError, CorpusError
from lmm_classifier.metrics.confidence import (
    adaptive_calibration_error,
    aurc,
    brier,
    expected_calibration_error,
    reliability_bins,
    risk_coverage_curve,
    selective_accuracy,
)

EXACT = 1e-9
METRICS = [aurc, expected_calibration_error, adaptive_calibration_error, brier]


def answers(seed: int, n: int = 500) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    confidence = generator.beta(4, 2, n)
    return confidence, generator.random(n) < confidence**1.5


@pytest.mark.parametrize("seed", range(5))
class TestWithoutTies:
    def test_aurc_is_the_complement_of_pytorch_oods_aurra(self, seed: int) -> None:
        """AURRA is the mean accuracy over all response rates, AURC the mean risk."""
        confidence, right = answers(seed)
        expected = 1 - oracle.aurra(torch.as_tensor(confidence), torch.as_tensor(right))
        assert aurc(confidence, right) == pytest.approx(expected, abs=EXACT)
        assert risk_coverage_curve(confidence, right).y.mean() == pytest.approx(expected, abs=EXACT)

    @pytest.mark.parametrize("bins", [1, 2, 15, 40])
    def test_equal_width(self, seed: int, bins: int) -> None:
        """MAPIE counts the edges of the bins, which are one more than the bins."""
        confidence, right = answers(seed)
        expected = mapie_ece(right.astype(int), confidence, num_bins=bins + 1, split_strategy="uniform")
        assert expected_calibration_error(confidence, right, bins=bins) == pytest.approx(expected, abs=EXACT)

    @pytest.mark.parametrize("bins", [1, 2, 15, 40])
    def test_equal_mass(self, seed: int, bins: int) -> None:
        """MAPIE splits the answers in the order given; sorted, its bins are ours."""
        confidence, right = answers(seed)
        order = np.argsort(confidence)
        expected = mapie_ece(right[order].astype(int), confidence[order], num_bins=bins,
                             split_strategy="array split")  # fmt: skip
        assert adaptive_calibration_error(confidence, right, bins=bins) == pytest.approx(expected, abs=EXACT)

    def test_equal_mass_of_full_bins_is_pytorch_oods(self, seed: int) -> None:
        confidence, right = answers(seed)
        tensors = (torch.as_tensor(confidence), torch.as_tensor(right))
        expected = oracle.calibration_error(*tensors, p="1", beta=25)
        assert adaptive_calibration_error(confidence, right, bins=20) == pytest.approx(expected, abs=EXACT)

    def test_brier(self, seed: int) -> None:
        confidence, right = answers(seed)
        assert brier(confidence, right) == pytest.approx(brier_score_loss(right, confidence), abs=EXACT)

    def test_selective_accuracy_is_the_complement_of_the_risk(self, seed: int) -> None:
        confidence, right = answers(seed)
        surest = right[np.argsort(-confidence)]
        for coverage in (0.1, 0.5, 0.9, 1.0):
            expected = surest[: int(500 * coverage)].mean()
            assert selective_accuracy(confidence, right, coverage) == pytest.approx(expected, abs=EXACT)


class TestTies:
    def test_are_the_mean_over_all_orders(self) -> None:
        confidence = np.asarray([0.9, 0.5, 0.5, 0.5, 0.5, 0.1])
        right = np.asarray([True, True, False, False, True, True])
        curves = []
        for tied in permutations(right[1:5]):
            ordered = np.asarray([right[0], *tied, right[5]])
            curves.append(1 - np.cumsum(ordered) / np.arange(1, 7))
        curve = risk_coverage_curve(confidence, right)
        np.testing.assert_allclose(curve.y, np.mean(curves, axis=0), atol=EXACT)
        assert aurc(confidence, right) == pytest.approx(np.mean(curves), abs=EXACT)
        assert selective_accuracy(confidence, right, 0.5) == pytest.approx(1 - np.mean(curves, axis=0)[2])

    def test_the_order_given_does_not_matter(self) -> None:
        confidence, right = answers(0)
        confidence = np.round(confidence, 1)
        order = np.random.default_rng(1).permutation(len(right))
        for metric in METRICS:
            assert metric(confidence, right) == pytest.approx(metric(confidence[order], right[order]))

    def test_constant_confidence_has_the_documented_values(self) -> None:
        confidence, right = np.full(10, 0.7), np.arange(10) < 4
        assert aurc(confidence, right) == pytest.approx(0.6)
        assert selective_accuracy(confidence, right, 0.3) == pytest.approx(0.4)
        assert expected_calibration_error(confidence, right) == pytest.approx(0.3)
        assert adaptive_calibration_error(confidence, right) == pytest.approx(0.3)


def test_equal_width_by_hand() -> None:
    """Two bins (0, .5] and (.5, 1]: .5 belongs to the first, and 0 too, where MAPIE has one for it alone."""
    confidence, right = [0.0, 0.5, 0.6, 1.0], np.asarray([False, True, True, False])
    assert expected_calibration_error(confidence, right, bins=2) == pytest.approx(0.5 / 4 + 0.6 / 4)
    first, second = reliability_bins(confidence, right, bins=2)
    assert (first.low, first.high, first.answers, first.confidence, first.accuracy) == (0, 0.5, 2, 0.25, 0.5)
    assert (second.answers, second.accuracy) == (2, 0.5)
    assert second.confidence == pytest.approx(0.8)


def test_bins_hold_every_answer_and_may_be_empty() -> None:
    confidence, right = answers(0)
    bins = reliability_bins(confidence, right)
    assert len(bins) == 15
    assert sum(b.answers for b in bins) == 500
    gaps = [b.answers * abs(b.accuracy - b.confidence) for b in bins if b.accuracy is not None]
    assert sum(gaps) / 500 == pytest.approx(expected_calibration_error(confidence, right))
    empty = reliability_bins([0.99], np.asarray([True]))[0]
    assert (empty.answers, empty.confidence, empty.accuracy) == (0, None, None)


def test_fewer_answers_than_bins() -> None:
    confidence, right = np.asarray([0.2, 0.9]), np.asarray([False, True])
    assert adaptive_calibration_error(confidence, right) == pytest.approx((0.2 + 0.1) / 2)


@pytest.mark.parametrize("decimals", [12, 1])
def test_an_answer_that_counts_twice_is_two_answers(decimals: int) -> None:
    confidence, right = answers(7)
    confidence = np.round(confidence, decimals)
    counts = np.random.default_rng(8).integers(0, 4, (3, len(right)))
    metrics: list[Callable[..., Any]] = [*METRICS, lambda c, r, w=None: selective_accuracy(c, r, 0.8, w)]
    for metric in metrics:
        together = metric(confidence, right, counts.astype(float))
        assert together.shape == (3,)
        for row in range(3):
            apart = metric(np.repeat(confidence, counts[row]), np.repeat(right, counts[row]))
            assert together[row] == pytest.approx(apart, abs=EXACT)


@pytest.mark.parametrize("metric", [*METRICS, risk_coverage_curve, reliability_bins])
def test_nonsense_is_refused(metric: Callable[..., Any]) -> None:
    right = np.asarray([True, False])
    with pytest.raises(ConfigError, match="finite"):
        metric([0.5, np.nan], right)
    with pytest.raises(ConfigError, match="as the others are"):
        metric([0.1, 0.2, 0.3], right)
    with pytest.raises(CorpusError, match="empty"):
        metric([], np.asarray([], bool))


@pytest.mark.parametrize("metric", [expected_calibration_error, adaptive_calibration_error, brier])
def test_what_is_no_probability_is_refused(metric: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        metric([0.5, 1.5], np.asarray([True, False]))


def test_parameters_out_of_range() -> None:
    right = np.asarray([True, False])
    for coverage in (0.0, 1.5, np.nan):
        with pytest.raises(ConfigError, match="coverage"):
            selective_accuracy([0.1, 0.2], right, coverage)
    for metric in (expected_calibration_error, adaptive_calibration_error, reliability_bins):
        with pytest.raises(ConfigError, match="at least one bin"):
            metric([0.1, 0.2], right, bins=0)
