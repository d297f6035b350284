"""regions -> embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from pydantic import field_validator
from pydantic.dataclasses import dataclass

from lmm_classifier import registry
from lmm_classifier.errors import ModelError
from lmm_classifier.models.base import RawEncoder, input_size_of
from lmm_classifier.models.loading import load_encoder
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.options import Flag
from lmm_classifier.pipeline import Step, by_sample, crops_of
from lmm_classifier.types import Sample, read_only


@dataclass(frozen=True, config={"extra": "forbid"})
class Embed(Step):
    """Encode the regions looked at, of all images in one model call.

    Attributes:
        encoder: makes the vectors.
        normalize: False gives them as the model does, of any length; they are kept apart from unit vectors,
            and no index takes them.
    """

    name: ClassVar[str] = "embed"
    requires: ClassVar[frozenset[str]] = frozenset({"image", "regions"})
    provides: ClassVar[frozenset[str]] = frozenset({"embeddings"})

    encoder: ModelSpec
    normalize: Flag = True

    @field_validator("encoder")
    @classmethod
    def _registered(cls, encoder: ModelSpec) -> ModelSpec:
        registry.check("encoder", encoder.family)
        return encoder

    def load(self) -> None:
        load_encoder(self.encoder)

    def resolution(self) -> int | None:
        return input_size_of(load_encoder(self.encoder))

    def run(self, batch: Sequence[Sample]) -> list[Sample]:
        if not batch:
            return []
        encoder = load_encoder(self.encoder)
        key = encoder.contract.fingerprint
        if self.normalize:
            vectors = encoder.encode(crops_of(batch))  # (sum of r, d)
        elif isinstance(encoder, RawEncoder):
            vectors, key = encoder.encode_raw(crops_of(batch)), f"{key}-raw"
        else:
            raise ModelError(f"{self.encoder.family!r} has unit vectors only; leave `normalize` out")
        vectors.setflags(write=False)
        return [
            replace(sample, embeddings=read_only({**sample.embeddings, key: rows}))
            for sample, rows in zip(batch, by_sample(batch, vectors), strict=True)
        ]
