"""Vectors of labels that lie around directions of their own."""

from __future__ import annotations

import numpy as np

from lmm_classifier.types import FloatArray


def clusters(labels: int, n: int, spread: float, seed: int) -> tuple[FloatArray, list[int]]:
    """Unit vectors (m, 16), n around each of at most 8 directions, which no seed moves; and their codes."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(8, 16))
    codes = np.repeat(np.arange(labels), n)
    vectors = centres[codes] + spread * random.normal(size=(len(codes), 16))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32), codes.tolist()
