"""regions -> captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, ClassVar

from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass

from lmm_classifier import registry
from lmm_classifier.models.captioning import captioned, load_captioner
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.options import BatchSize, MaxLength
from lmm_classifier.pipeline import Step, by_sample, crops_of
from lmm_classifier.types import Sample


@dataclass(frozen=True, config={"extra": "forbid"})
class Caption(Step):
    """Describe the regions looked at in words.

    Attributes:
        model: the captioner.
        prompt: what the family makes of one: `blip` begins the sentence with it, `image-text-to-text` is
            told to do it; None is the family's own.
        max_length: at most so many new tokens.
        batch_size: regions per forward pass.
    """

    name: ClassVar[str] = "caption"
    requires: ClassVar[frozenset[str]] = frozenset({"image", "regions"})
    provides: ClassVar[frozenset[str]] = frozenset({"captions"})

    model: ModelSpec
    prompt: Annotated[str, Field(pattern=r"\S")] | None = None
    max_length: MaxLength = 50
    batch_size: BatchSize = 8

    @field_validator("model")
    @classmethod
    def _registered(cls, model: ModelSpec) -> ModelSpec:
        registry.check("captioner", model.family)
        return model

    def load(self) -> None:
        load_captioner(self.model)

    def run(self, batch: Sequence[Sample]) -> list[Sample]:
        texts = (
            captioned(self.model, crops_of(batch), self.prompt, self.max_length, self.batch_size)
            if batch
            else []
        )
        return [
            replace(sample, captions=tuple(some))
            for sample, some in zip(batch, by_sample(batch, texts), strict=True)
        ]
