"""Against scikit-learn and pytorch-ood; the latter calls unknown positive, and high scores mean unknown."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_ood.metrics import functional as oracle
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve

from lmm_classifier.errors import ConfigError, CorpusError
from lmm_classifier.metrics.open_set import (
    aupr_known,
    aupr_unknown,
    auroc,
    fpr_at_kept,
    oscr_area,
    oscr_curve,
    roc_curve,
)

EXACT = 1e-9
METRICS = [auroc, aupr_known, aupr_unknown, fpr_at_kept]


def queries(seed: int, distinct: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, known, right; few distinct scores mean many ties."""
    generator = np.random.default_rng(seed)
    known = generator.random(400) < 0.7
    scores = generator.normal(known * 1.0, 1.0)
    if distinct:
        scores = np.round(scores * distinct / 8) / distinct
    return scores, known, generator.random(400) < 0.8


@pytest.fixture(params=[(0, None), (1, None), (2, 8), (3, 2), (4, 40)], ids=str)
def case(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return queries(*request.param)


def test_auroc(case: tuple[np.ndarray, ...]) -> None:
    scores, known, _ = case
    assert auroc(scores, known) == pytest.approx(roc_auc_score(known, scores), abs=EXACT)
    labels = torch.as_tensor(np.where(known, 0, -1))
    assert auroc(scores, known) == pytest.approx(
        float(oracle.auroc(torch.as_tensor(-scores), labels)), abs=EXACT
    )


def test_aupr_is_average_precision(case: tuple[np.ndarray, ...]) -> None:
    scores, known, _ = case
    assert aupr_known(scores, known) == pytest.approx(average_precision_score(known, scores), abs=EXACT)
    assert aupr_unknown(scores, known) == pytest.approx(average_precision_score(~known, -scores), abs=EXACT)


def test_aupr_differs_from_pytorch_ood_in_convention_only() -> None:
    """Known .9, unknown .8, known .7: average precision is 1/2 + 1/2 x 2/3.

    pytorch-ood joins (recall, precision) (0, 1), (.5, 1), (.5, .5), (1, 2/3) with straight lines, and so
    counts points between the cuts that no threshold reaches: 1/2 + 1/2 x (1/2 + 2/3) / 2.
    """
    scores, known = np.asarray([0.9, 0.8, 0.7]), np.asarray([True, False, True])
    assert aupr_known(scores, known) == pytest.approx(float(Fraction(1, 2) + Fraction(1, 3)), abs=EXACT)
    trapezoid = oracle.aupr(torch.as_tensor(-scores), torch.as_tensor([0, -1, 0]), positive="id")
    assert float(trapezoid) == pytest.approx(float(Fraction(1, 2) + Fraction(7, 24)), abs=EXACT)


def test_fpr_at_95_keeps_the_knowns(case: tuple[np.ndarray, ...]) -> None:
    """pytorch-ood detects 95 % of its positives: given the roles exchanged, these are the knowns."""
    scores, known, _ = case
    exchanged = torch.as_tensor(np.where(known, -1, 0))
    for kept in (0.5, 0.95, 0.999, 1.0):
        expected = float(oracle.fpr_at_tpr(torch.as_tensor(scores), exchanged, kept))
        assert fpr_at_kept(scores, known, kept=kept) == pytest.approx(expected, abs=EXACT)


def test_fpr_at_95_by_hand() -> None:
    """19 of 20 knowns are enough for .95: the cut is the second lowest; 1 of 4 unknowns reaches it."""
    scores = np.asarray([*np.arange(10, 30), 11.5, 10.5, 2, 1], float)
    known = np.arange(24) < 20
    assert fpr_at_kept(scores, known) == 0.25
    assert fpr_at_kept(scores, known, kept=0.951) == 0.5


def test_roc_curve(case: tuple[np.ndarray, ...]) -> None:
    scores, known, _ = case
    curve = roc_curve(scores, known)
    x, y, _ = sklearn_roc_curve(known, scores, drop_intermediate=False)
    np.testing.assert_allclose(curve.x, x, atol=EXACT)
    np.testing.assert_allclose(curve.y, y, atol=EXACT)


def test_oscr(case: tuple[np.ndarray, ...]) -> None:
    scores, known, right = case
    labels = torch.as_tensor(np.where(known, 0, -1))
    predictions = torch.as_tensor(np.where(right, 0, 1))
    expected = oracle.oscr_score(torch.as_tensor(-scores), predictions, labels)
    assert oscr_area(scores, known, right) == pytest.approx(expected, abs=EXACT)
    curve = oscr_curve(scores, known, right)
    assert np.trapezoid(curve.y, curve.x) == pytest.approx(expected, abs=EXACT)
    assert (curve.x[0], curve.y[0], curve.x[-1]) == (0, 0, 1)
    assert curve.y[-1] == pytest.approx(right[known].mean())
    assert oscr_area(scores, known, known) == pytest.approx(auroc(scores, known), abs=EXACT)


def test_oscr_by_hand() -> None:
    """Known right .9, known wrong .8, unknown .7 with known right, unknown .1, of 3 knowns and 2 unknowns."""
    scores, known = np.asarray([0.9, 0.8, 0.7, 0.7, 0.1]), np.asarray([True, True, True, False, False])
    right = np.asarray([True, False, True, True, True])
    curve = oscr_curve(scores, known, right)
    np.testing.assert_allclose(curve.x, [0, 0, 0, 0.5, 1])
    np.testing.assert_allclose(curve.y, [0, 1 / 3, 1 / 3, 2 / 3, 2 / 3])
    assert oscr_area(scores, known, right) == pytest.approx(0.5 * 0.5 + 0.5 * 2 / 3, abs=EXACT)


def test_constant_scores_have_the_documented_values() -> None:
    scores, known = np.full(10, 0.3), np.arange(10) < 6
    right = np.arange(10) < 3
    assert auroc(scores, known) == 0.5
    assert aupr_known(scores, known) == pytest.approx(0.6)
    assert aupr_unknown(scores, known) == pytest.approx(0.4)
    assert fpr_at_kept(scores, known) == 1
    assert oscr_area(scores, known, right) == pytest.approx(0.25)


@pytest.mark.parametrize("distinct", [None, 8])
def test_a_query_that_counts_twice_is_two_queries(distinct: int | None) -> None:
    scores, known, right = queries(5, distinct)
    counts = np.random.default_rng(6).integers(0, 4, (3, len(scores)))
    metrics: list[Callable[..., Any]] = [
        *METRICS,
        lambda s, k, c=None: oscr_area(s, k, right if c is not None else np.repeat(right, counts[0]), c),
    ]
    for metric in metrics:
        together = metric(scores, known, counts.astype(float))
        assert together.shape == (3,)
        apart = metric(np.repeat(scores, counts[0]), np.repeat(known, counts[0]))
        assert together[0] == pytest.approx(apart, abs=EXACT)


@pytest.mark.parametrize("metric", METRICS)
def test_nonsense_is_refused(metric: Callable[..., Any]) -> None:
    known = np.asarray([True, False])
    for bad in (np.nan, np.inf):
        with pytest.raises(ConfigError, match="scores must be finite, entry 1"):
            metric([0.5, bad], known)
    with pytest.raises(ConfigError, match=r"known must be \(3,\)"):
        metric([0.1, 0.2, 0.3], known)
    with pytest.raises(ConfigError, match="booleans"):
        metric([0.1, 0.2], np.asarray([1, 0]))
    with pytest.raises(ConfigError, match=r"must be \(n,\)"):
        metric([[0.1, 0.2]], known)
    with pytest.raises(ConfigError, match="counts must be"):
        metric([0.1, 0.2], known, np.ones(3))
    with pytest.raises(CorpusError, match="no unknown query"):
        metric([0.1, 0.2], np.asarray([True, True]))
    with pytest.raises(CorpusError, match="no known query"):
        metric([0.1, 0.2], np.asarray([False, False]))
    with pytest.raises(CorpusError, match="empty"):
        metric([], np.asarray([], bool))
    for kept in (0, 1.1, np.nan):
        with pytest.raises(ConfigError, match="kept"):
            fpr_at_kept([0.1, 0.2], known, kept=kept)
