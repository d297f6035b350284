"""embeddings -> neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic.dataclasses import dataclass

from lmm_classifier.index.search import open_index, open_matching
from lmm_classifier.pipeline import Step
from lmm_classifier.ranges import TopK
from lmm_classifier.types import Sample


@dataclass(frozen=True, config={"extra": "forbid"})
class Retrieve(Step):
    """Look up the k most similar labelled images of each region.

    Attributes:
        index: index folder; one of its encoders must have made the embeddings.
        k: neighbours per region, clipped to what the index holds.
        labels: only images with these labels are candidates; None means all.
    """

    name: ClassVar[str] = "retrieve"
    requires: ClassVar[frozenset[str]] = frozenset({"embeddings"})
    provides: ClassVar[frozenset[str]] = frozenset({"neighbours"})

    index: Path
    k: TopK = 10
    labels: tuple[str, ...] | None = None

    def load(self) -> None:
        open_index(self.index)

    def run(self, batch: Sequence[Sample]) -> list[Sample]:
        if not batch:
            return []
        index = open_matching(self.index, batch[0].embeddings)
        queries = [index.vectors_of(sample.embeddings) for sample in batch]  # batch x (r, d)
        found = index.search(np.concatenate(queries), self.k, self.labels)
        ends = np.cumsum([len(vectors) for vectors in queries])
        return [
            replace(sample, neighbours=index.describe(similarity, rows))
            for sample, similarity, rows in zip(
                batch, np.split(found.similarity, ends[:-1]), np.split(found.rows, ends[:-1]), strict=True
            )
        ]
