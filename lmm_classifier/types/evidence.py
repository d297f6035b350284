"""What retrieval finds: labelled neighbours, and what they say for each label."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lmm_classifier.types.arrays import FloatArray, IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Neighbours:
    """Nearest labelled images of each region, best first.

    Attributes:
        similarity: float32 (r, k), cosine in [-1, 1]; 0 where padded.
        rows: int64 (r, k), row in the index; -1 pads.
        labels: r tuples of the labels of the rows that are not padding.
        paths: r tuples of their paths, relative to the corpus root.
    """

    similarity: FloatArray
    rows: IntArray
    labels: tuple[tuple[str, ...], ...]
    paths: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        if self.similarity.ndim != 2 or self.similarity.shape != self.rows.shape:
            raise ValueError(
                f"similarity and rows must both be (r, k), got {self.similarity.shape} and {self.rows.shape}"
            )
        self.similarity.setflags(write=False)
        self.rows.setflags(write=False)


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Evidence per label, never per neighbour.

    Attributes:
        labels: the c labels in the running, sorted.
        values: float32 (r, c) in [0, 1]: share of the vote times the similarity behind it. A row sums to
            the weighted mean similarity of the region's neighbours, so the sum, in [0, 1], says how close
            the corpus is and the entries say how that closeness is shared out. `text_prior` keeps this,
            and counts labels without images as near as their names fit. Of a calibrated vote:
            probabilities, which sum to 1 and say nothing of closeness.
        known: float32 (r,) in [0, 1], how known each region looks; None where the sum of its values says it.
    """

    labels: tuple[str, ...]
    values: FloatArray
    known: FloatArray | None = None

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.shape[1] != len(self.labels):
            raise ValueError(f"values must be (r, {len(self.labels)}), got {self.values.shape}")
        self.values.setflags(write=False)
        if self.known is not None:
            if self.known.shape != self.values.shape[:1]:
                raise ValueError(f"known must be ({len(self.values)},), got {self.known.shape}")
            self.known.setflags(write=False)

    @property
    def closeness(self) -> FloatArray:
        """float32 (r,) in [0, 1]: `known`, or the sum of the values."""
        if self.known is not None:
            return self.known
        total = self.values.sum(axis=1, dtype=np.float64).clip(0, 1)  # rounding may carry it past 1
        return np.asarray(total, np.float32)
