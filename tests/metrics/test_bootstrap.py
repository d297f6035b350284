from __future__ import annotations

import time

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.metrics import roc_auc_score

from lmm_classifier.errors import ConfigError, CorpusError
from lmm_classifier.metrics.bootstrap import estimate
from lmm_classifier.metrics.confidence import adaptive_calibration_error, aurc
from lmm_classifier.metrics.open_set import auroc, fpr_at_kept, oscr_area
from lmm_classifier.metrics.weighted import share


def test_an_accuracy_has_the_binomial_interval() -> None:
    right = np.arange(400) < 300
    found = estimate({"accuracy": lambda c: share(right, counts=c)}, [True] * 400, resamples=20_000)
    assert found["accuracy"].value == 0.75
    low, high = binom.ppf([0.025, 0.975], 400, 0.75) / 400
    assert found["accuracy"].low == pytest.approx(low, abs=0.003)
    assert found["accuracy"].high == pytest.approx(high, abs=0.003)


def test_an_auroc_is_what_resampling_in_a_loop_gives() -> None:
    generator = np.random.default_rng(0)
    known = np.arange(300) < 200
    scores = generator.normal(known * 1.0)
    found = estimate({"auroc": lambda c: auroc(scores, known, c)}, known.tolist())["auroc"]
    looped = []
    for _ in range(1000):
        rows = np.concatenate([generator.integers(0, 200, 200), generator.integers(200, 300, 100)])
        looped.append(roc_auc_score(known[rows], scores[rows]))
    assert found.value == pytest.approx(roc_auc_score(known, scores), abs=1e-9)
    assert [found.low, found.high] == pytest.approx(np.quantile(looped, [0.025, 0.975]), abs=0.01)


def test_strata_keep_their_size_and_a_seed_its_draw() -> None:
    strata = ["known"] * 30 + ["far"] * 5
    sizes = []

    def watched(counts: np.ndarray) -> np.ndarray:
        sizes.append((counts[:, :30].sum(axis=1), counts[:, 30:].sum(axis=1)))
        return counts @ np.arange(35.0)

    first = estimate({"x": watched}, strata, resamples=50)
    assert all((known == 30).all() and (far == 5).all() for known, far in sizes)
    assert estimate({"x": watched}, strata, resamples=50) == first
    assert estimate({"x": watched}, strata, resamples=50, seed=1) != first


def test_a_share_of_what_is_not_always_there() -> None:
    asked, right = np.asarray([True, False, False]), np.asarray([True, True, True])
    found = estimate({"x": lambda c: share(right, asked, c)}, ["q"] * 3, resamples=200)["x"]
    assert (found.value, found.low, found.high) == (1, 1, 1)


def test_nonsense_is_refused() -> None:
    for options in ({"resamples": 0}, {"level": 1.0}, {"level": 0.0}):
        with pytest.raises(ConfigError):
            estimate({}, ["q"], **options)
    with pytest.raises(CorpusError):
        estimate({}, [])


@pytest.mark.timing
def test_ten_thousand_queries_take_seconds() -> None:
    generator = np.random.default_rng(0)
    known, right = np.arange(10_000) < 7000, generator.random(10_000) < 0.9
    scores = generator.random(10_000)
    started = time.perf_counter()
    estimate(
        {
            "auroc": lambda c: auroc(scores, known, c),
            "fpr": lambda c: fpr_at_kept(scores, known, c),
            "oscr": lambda c: oscr_area(scores, known, right, c),
            "aurc": lambda c: aurc(scores, right, c),
            "adaptive": lambda c: adaptive_calibration_error(scores, right, c),
        },
        known.tolist(),
    )
    seconds = time.perf_counter() - started
    assert seconds < 20  # measured 1.7
