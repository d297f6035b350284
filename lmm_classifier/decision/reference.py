"""What the corpus says in closed form: a mean per label, and Gaussians with one shared covariance.

Everything is fitted from additive moments, so leaving out some images or labels costs a subtraction and not
another pass over the vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from lmm_classifier.types import Float64Array, FloatArray, IntArray

_SMALLEST_SPREAD = 1e-12  # below it, variance of unit vectors is rounding


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Sums over labelled vectors: those of two disjoint sets add up to those of both.

    Attributes:
        counts: float64 (c,), images per label.
        sums: float64 (c, d), per label the sum of its vectors.
        scatter: float64 (d, d), sum of v v^T over all vectors.
    """

    counts: Float64Array
    sums: Float64Array
    scatter: Float64Array

    @classmethod
    def of(cls, blocks: Iterator[tuple[FloatArray, IntArray]], labels: int, dim: int) -> Moments:
        """Add up blocks of vectors (m, d) with the codes (m,) of their labels, in [0, labels)."""
        counts, sums, scatter = np.zeros(labels), np.zeros((labels, dim)), np.zeros((dim, dim))
        for vectors, codes in blocks:  # of bounded size: shards
            exact = vectors.astype(np.float64)
            counts += np.bincount(codes, minlength=labels)
            np.add.at(sums, codes, exact)
            scatter += exact.T @ exact
        return cls(counts, sums, scatter)

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.counts + other.counts, self.sums + other.sums, self.scatter + other.scatter)

    def __sub__(self, other: Moments) -> Moments:
        return Moments(self.counts - other.counts, self.sums - other.sums, self.scatter - other.scatter)


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """Means and Gaussians of the labels of one encoder's vectors, ready to compare queries with.

    All labels share one covariance, shrunk towards a multiple of the identity (`oas_shrinkage`). The
    directions in which their means differ are at most c - 1; with `projection` into these, scaled so that
    the shared covariance is the identity there, a query's likelihoods differ between labels as they do in
    all of d dimensions, at a fraction of the cost. The background Gaussian, of all images whatever their
    label, is diagonal there and equal to the labels' everywhere else.

    Attributes:
        counts: float32 (c,), images per label; 0 for a label that was left out.
        prototypes: float32 (c, d), unit rows: the direction of each label's mean; 0 where counts is.
        mean: float32 (d,), mean over all images.
        projection: float32 (d, r), from centred vectors to r <= min(c - 1, d) directions.
        centres: float32 (c, r), projected means of the labels.
        spread: float32 (r,), variance of all images per direction, in units of that within a label; > 1.
        whitening: float32 (d, d), makes the shared covariance the identity.
    """

    counts: FloatArray
    prototypes: FloatArray
    mean: FloatArray
    projection: FloatArray
    centres: FloatArray
    spread: FloatArray
    whitening: FloatArray

    def arrays(self) -> Mapping[str, FloatArray]:
        """All of it by name, for storage."""
        return {name: getattr(self, name) for name in self.__slots__}

    def project(self, vectors: FloatArray) -> FloatArray:
        """Vectors (n, d) as float32 (n, r)."""
        return np.asarray((vectors - self.mean) @ self.projection, np.float32)

    def squared_distances(self, projected: FloatArray) -> FloatArray:
        """Squared distances to the labels' means within the r directions, in variances; float32 (n, c).

        Args:
            projected: float32 (n, r), from `project`.
        """
        if not self.projection.shape[1]:
            return np.zeros((len(projected), len(self.centres)), np.float32)
        squares = (projected**2).sum(axis=1)[:, None] - 2 * projected @ self.centres.T
        return np.asarray((squares + (self.centres**2).sum(axis=1)).clip(0), np.float32)

    @property
    def log_prior(self) -> FloatArray:
        """float32 (c,): logarithm of the share of each label in the corpus; -inf for one left out."""
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(self.counts / self.counts.sum()), np.float32)


def fit_reference(moments: Moments) -> Reference:
    """Fit means and shared covariance.

    Args:
        moments: of unit vectors; labels without images are left out of everything.
    """
    there = moments.counts > 0
    n, dim = moments.counts.sum(), moments.scatter.shape[0]
    means = np.zeros_like(moments.sums)
    means[there] = moments.sums[there] / moments.counts[there, None]
    mean = moments.sums.sum(axis=0) / n
    within = (moments.scatter - (means * moments.counts[:, None]).T @ means) / n
    shrinkage = oas_shrinkage(within, n)
    variance = max(float(np.trace(within)) / dim, _SMALLEST_SPREAD)
    values, vectors = np.linalg.eigh((1 - shrinkage) * within)
    whitening = vectors / np.sqrt(values.clip(0) + max(shrinkage * variance, _SMALLEST_SPREAD))
    offsets = (means - mean) * there[:, None]  # (c, d)
    weighted = np.sqrt(moments.counts / n)[:, None] * offsets @ whitening
    _, strengths, directions = np.linalg.svd(weighted, full_matrices=False)
    kept = strengths > 1e-6  # standard deviations; one direction fewer than labels carries anything
    projection = whitening @ directions[kept].T
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    return Reference(
        counts=moments.counts.astype(np.float32),
        prototypes=(means / np.where(lengths > 0, lengths, 1)).astype(np.float32),
        mean=mean.astype(np.float32),
        projection=projection.astype(np.float32),
        centres=(offsets @ projection).astype(np.float32),
        spread=(1 + strengths[kept] ** 2).astype(np.float32),
        whitening=whitening.astype(np.float32),
    )


def oas_shrinkage(covariance: Float64Array, n: float) -> float:
    """How far to shrink a covariance (d, d) of n samples towards a multiple of the identity, in [0, 1].

    Oracle approximating shrinkage (Chen et al., IEEE Trans. Signal Processing 2010, eq. 23), in the form in
    which scikit-learn has it; it needs nothing but the covariance itself.
    """
    dim = len(covariance)
    alpha, mu = float(np.mean(covariance**2)), float(np.trace(covariance)) / dim
    spread = (n + 1) * (alpha - mu**2 / dim)
    return 1.0 if spread <= 0 else min((alpha + mu**2) / spread, 1.0)
