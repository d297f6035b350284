from __future__ import annotations

import numpy as np
import pytest
from sklearn.covariance import oas
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from lmm_classifier.decision.heads import HeadSettings, Queries, gda, prototype
from lmm_classifier.decision.novelty import NoveltyInputs, novelty_scores
from lmm_classifier.decision.reference import Moments, Reference, fit_reference, oas_shrinkage
from lmm_classifier.types import FloatArray, IntArray

C, D = 5, 24
SETTINGS = HeadSettings({"gda": 1.0}, k=5, temperature=0.07)


def unit(values: FloatArray) -> FloatArray:
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def data() -> tuple[FloatArray, IntArray, FloatArray]:
    """Labelled vectors of unequal counts, and queries."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(C, D))
    codes = rng.choice(C, 300, p=[0.4, 0.3, 0.15, 0.1, 0.05])
    shape = rng.normal(size=(D, D)) * 0.3
    vectors = unit(means[codes] + rng.normal(size=(300, D)) @ shape)
    return vectors, codes, unit(means[rng.integers(0, C, 60)] + rng.normal(size=(60, D)) @ shape)


@pytest.fixture(scope="module")
def reference(data: tuple[FloatArray, IntArray, FloatArray]) -> Reference:
    vectors, codes, _ = data
    return fit_reference(Moments.of(iter([(vectors[:100], codes[:100]), (vectors[100:], codes[100:])]), C, D))


def within(vectors: FloatArray, codes: IntArray) -> FloatArray:
    means = np.stack([vectors[codes == j].mean(axis=0) for j in range(C)])
    return vectors.astype(np.float64) - means[codes]


def covariances(vectors: FloatArray, codes: IntArray) -> tuple[FloatArray, FloatArray]:
    """Shared covariance within labels, shrunk, and that of all images: written out in full."""
    residuals = within(vectors, codes)
    shared = oas(residuals, assume_centered=True)[0]
    means = np.stack([vectors[codes == j].mean(axis=0) for j in range(C)]).astype(np.float64)
    offsets = (means - vectors.mean(axis=0))[codes]
    return shared, shared + offsets.T @ offsets / len(codes)


def queries(vectors: FloatArray) -> Queries:
    n = len(vectors)
    return Queries((vectors,), np.ones((n, 1), np.float32), np.zeros((n, 1), np.int64))


def test_shrinkage_is_scikit_learns(data: tuple[FloatArray, IntArray, FloatArray]) -> None:
    vectors, codes, _ = data
    residuals = within(vectors, codes)
    expected = oas(residuals, assume_centered=True)[1]
    assert oas_shrinkage(residuals.T @ residuals / len(residuals), len(residuals)) == pytest.approx(expected)


def test_posterior_is_that_of_linear_discriminant_analysis(
    data: tuple[FloatArray, IntArray, FloatArray], reference: Reference
) -> None:
    vectors, codes, asked = data
    shared, _ = covariances(vectors, codes)

    class Shared:
        """What LinearDiscriminantAnalysis takes as an estimator: it fits one covariance per label."""

        def fit(self, _: FloatArray) -> Shared:
            self.covariance_ = shared
            return self

    oracle = LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=Shared())
    expected = oracle.fit(vectors.astype(np.float64), codes).predict_proba(asked)
    assert gda(queries(asked), reference, 0, SETTINGS) == pytest.approx(expected, abs=2e-4)


def test_mahalanobis_scores_are_those_written_out(
    data: tuple[FloatArray, IntArray, FloatArray], reference: Reference
) -> None:
    vectors, codes, asked = data
    shared, total = covariances(vectors, codes)
    inverse, background = np.linalg.inv(shared), np.linalg.inv(total)
    means = np.stack([vectors[codes == j].mean(axis=0) for j in range(C)]).astype(np.float64)
    from_labels = np.min([np.einsum("nd,de,ne->n", asked - m, inverse, asked - m) for m in means], axis=0)
    centred = asked - vectors.mean(axis=0)
    from_all = np.einsum("nd,de,ne->n", centred, background, centred)
    names = ["mahalanobis", "relative_mahalanobis", "gda_energy"]
    found = novelty_scores(names, queries(asked), [reference], SETTINGS)
    assert found[:, 0] == pytest.approx(-from_labels / 2, rel=1e-3)
    assert found[:, 1] == pytest.approx((from_all - from_labels) / 2, rel=1e-3, abs=1e-2)
    linear = centred @ inverse @ (means - vectors.mean(axis=0)).T
    offset = np.einsum(
        "cd,de,ce->c", *[means - vectors.mean(axis=0)] * 1, inverse, means - vectors.mean(axis=0)
    )
    logits = linear - offset / 2 + np.log(np.bincount(codes) / len(codes))
    assert found[:, 2] == pytest.approx(np.log(np.exp(logits).sum(axis=1)), rel=1e-3, abs=1e-2)


def test_leaving_out_is_as_if_it_had_never_been_there(data: tuple[FloatArray, IntArray, FloatArray]) -> None:
    vectors, codes, asked = data
    everything, left_out = (
        Moments.of(iter([(vectors[rows], codes[rows])]), C, D) for rows in (codes >= 0, codes == 2)
    )
    without = fit_reference(everything - left_out)
    kept = codes != 2
    renumbered = fit_reference(
        Moments.of(iter([(vectors[kept], np.searchsorted([0, 1, 3, 4], codes[kept]))]), C - 1, D)
    )
    found = gda(queries(asked), without, 0, SETTINGS)
    assert (found[:, 2] == 0).all()
    assert found[:, [0, 1, 3, 4]] == pytest.approx(gda(queries(asked), renumbered, 0, SETTINGS), abs=1e-4)
    cosines = prototype(queries(asked), without, 0, SETTINGS)
    assert (cosines[:, 2] == 0).all()
    assert cosines.sum(axis=1) == pytest.approx(1)


def test_prototypes_are_the_directions_of_the_means(
    data: tuple[FloatArray, IntArray, FloatArray], reference: Reference
) -> None:
    vectors, codes, asked = data
    means = np.stack([vectors[codes == j].mean(axis=0) for j in range(C)])
    cosine = asked @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
    weights = np.exp(cosine / SETTINGS.prototype_temperature)
    expected = weights / weights.sum(axis=1, keepdims=True)
    assert prototype(queries(asked), reference, 0, SETTINGS) == pytest.approx(expected, abs=1e-5)
    best = np.sort(cosine, axis=1)
    found = novelty_scores(
        ["prototype_similarity", "prototype_margin"], queries(asked), [reference], SETTINGS
    )
    assert found[:, 0] == pytest.approx(best[:, -1], abs=1e-5)
    assert found[:, 1] == pytest.approx(best[:, -1] - best[:, -2], abs=1e-5)


@pytest.mark.parametrize("labels", [1, 2])
def test_few_labels(labels: int) -> None:
    vectors = unit(np.random.default_rng(1).normal(size=(30, D)))
    codes = np.arange(30) % labels
    one = fit_reference(Moments.of(iter([(vectors, codes)]), labels, D))
    assert one.projection.shape == (D, labels - 1)
    found = gda(queries(vectors), one, 0, SETTINGS)
    assert found.sum(axis=1) == pytest.approx(1)
    assert np.isfinite(novelty_scores(["mahalanobis", "gda_energy"], queries(vectors), [one], SETTINGS)).all()


def test_equal_vectors_give_finite_answers() -> None:
    vectors = np.tile(unit(np.ones((1, D))), (10, 1))
    one = fit_reference(Moments.of(iter([(vectors, np.arange(10) % 2)]), 2, D))
    assert np.isfinite(gda(queries(vectors), one, 0, SETTINGS)).all()
    assert NoveltyInputs  # the dataclass scores are functions of
