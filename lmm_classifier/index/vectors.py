"""Vectors that lie in several arrays, mostly mapped from disk, read as one matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from lmm_classifier.types import BoolArray, FloatArray, IntArray


class Vectors:
    """n unit vectors of dimension d in one or more parts, in row order.

    Attributes:
        parts: float32 (rows of the part, d) each; they are not copied.
        dim: d.
    """

    def __init__(self, parts: Sequence[FloatArray], dim: int) -> None:
        self.parts = tuple(parts)
        self.dim = dim
        self._ends = np.cumsum([len(part) for part in self.parts], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.parts else 0

    def take(self, rows: IntArray) -> FloatArray:
        """Some rows (m,), in any order and repeated at will, as float32 (m, d)."""
        found = np.empty((len(rows), self.dim), np.float32)
        part_of = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(part_of).tolist():
            here = part_of == number
            start = self._ends[number] - len(self.parts[number])
            found[here] = self.parts[number][rows[here] - start]
        return found

    def blocks(self, codes: IntArray, wanted: BoolArray) -> Iterator[tuple[FloatArray, IntArray]]:
        """Part by part, the wanted vectors (m, d) with the codes (m,) of their labels.

        Args:
            codes: int64 (n,).
            wanted: bool (n,).
        """
        for part, end in zip(self.parts, self._ends.tolist(), strict=True):
            here = wanted[end - len(part) : end]
            yield part[here], codes[end - len(part) : end][here]
