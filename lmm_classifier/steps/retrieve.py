"""embeddings -> neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from pydantic import model_validator
from pydantic.dataclasses import dataclass

from lmm_classifier.index.milvus import Milvus
from lmm_classifier.index.search import FAISS, Backend, VectorIndex, open_index, open_matching
from lmm_classifier.options import SearchBackend, TopK
from lmm_classifier.pipeline import Step, by_sample
from lmm_classifier.types import EncoderContract, Neighbours, Sample


@dataclass(frozen=True, config={"extra": "forbid"})
class Retrieve(Step):
    """Look up the k most similar labelled images of each region.

    Attributes:
        index: index folder; one of its encoders must have made the embeddings.
        k: neighbours per region, clipped to what the index holds.
        labels: only images with these labels are candidates; None means all.
        backend: "faiss" searches in this process, "milvus" where `index push` has put the index; the
            answers are the same.
        milvus_uri, milvus_collection: as `lmm_classifier.index.milvus.Milvus` has them.
    """

    name: ClassVar[str] = "retrieve"
    requires: ClassVar[frozenset[str]] = frozenset({"embeddings"})
    provides: ClassVar[frozenset[str]] = frozenset({"neighbours"})

    index: Path
    k: TopK = 10
    labels: tuple[str, ...] | None = None
    backend: SearchBackend = "faiss"
    milvus_uri: str | None = None
    milvus_collection: str | None = None

    @model_validator(mode="after")
    def _one_backend(self) -> Self:
        if self.backend == "milvus" and not self.milvus_uri:
            raise ValueError("backend milvus needs milvus_uri")
        if self.backend != "milvus" and (self.milvus_uri or self.milvus_collection):
            raise ValueError("milvus_uri and milvus_collection need backend: milvus")
        return self

    def load(self) -> None:
        self.open()

    def open(self, encoder: EncoderContract | None = None) -> VectorIndex:
        """The index, as this step searches it. Arguments and errors as `open_index`."""
        return open_index(self.index, encoder, self._backend)

    @property
    def _backend(self) -> Backend:
        return Milvus(self.milvus_uri, self.milvus_collection) if self.milvus_uri else FAISS

    def run(self, batch: Sequence[Sample]) -> list[Sample]:
        if not batch:
            return []
        index = open_matching(self.index, batch[0].embeddings, self._backend)
        queries = [index.vectors_of(sample.embeddings) for sample in batch]  # batch x (r, d)
        found = index.search(np.concatenate(queries), self.k, self.labels)
        near = index.describe(found.similarity, found.rows)
        parts = zip(
            by_sample(batch, near.similarity),
            by_sample(batch, near.rows),
            by_sample(batch, near.labels),
            by_sample(batch, near.paths),
            strict=True,
        )
        return [
            replace(sample, neighbours=Neighbours(*own)) for sample, own in zip(batch, parts, strict=True)
        ]
