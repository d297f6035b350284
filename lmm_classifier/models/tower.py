"""Running an opened tower: images or texts in, unit vectors out, foreign errors in our words."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor

from lmm_classifier.errors import ModelError
from lmm_classifier.models.base import ModelSpec
from lmm_classifier.models.pretrained import (
    first_line,
    preprocessing_of,
    pretrained,
    pretrained_model,
    weights_digest,
)
from lmm_classifier.types import EncoderContract, FloatArray

T = TypeVar("T")

MAX_ASPECT_RATIO = 16
"""A centre crop sees no more of a photo; resized whole, 1 x 2,000 px would become 224 x 448,000."""


class VisionTower:
    """An image model of transformers and the image processor that came with it.

    A family names the architectures it takes, and which output is the vector.
    """

    family: ClassVar[str]
    title: ClassVar[str]
    default_weights: ClassVar[str]
    towers: ClassVar[Mapping[str, Any]]
    """`model_type` of a checkpoint -> the class of transformers that runs it."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._weights = spec.weights or self.default_weights
        config = pretrained(AutoConfig.from_pretrained, spec, self._weights)
        if config.model_type not in self.towers:
            raise ModelError(
                f"model {self._weights!r} is a {config.model_type!r} checkpoint, not a {self.title} one"
            )
        self._model_type: str = config.model_type
        self._processor = pretrained(AutoImageProcessor.from_pretrained, spec, self._weights)
        self._crops = bool(getattr(self._processor, "do_center_crop", False))
        self._model = pretrained_model(self.towers[self._model_type].from_pretrained, spec, self._weights)
        self._contract = contract_of(
            self.family,
            spec,
            self._weights,
            self._model,
            preprocessing_of(self._processor),
            self._model.config.hidden_size,
        )

    @property
    def contract(self) -> EncoderContract:
        return self._contract

    def encode(self, images: Sequence[Image.Image]) -> FloatArray:
        if not images:
            return np.empty((0, self._contract.dim), np.float32)
        with running(self._weights, f"{len(images)} images"):
            shown = [without_sliver(image) for image in images] if self._crops else list(images)
            inputs = self._processor(images=shown, return_tensors="pt").to(self._model.device)
            inputs["pixel_values"] = inputs["pixel_values"].to(self._model.dtype)
            return unit_rows(self.pick(self._model(**inputs)))

    def pick(self, output: Any) -> torch.Tensor:
        """The vectors (n, d) among the outputs of the model."""
        pooled: torch.Tensor = output.pooler_output
        return pooled


class OnFirstUse(Generic[T]):
    """Something that is opened when it is first asked for: once, however many threads ask."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._made: list[T] = []
        self._lock = threading.Lock()

    def __call__(self) -> T:
        with self._lock:
            if not self._made:
                self._made.append(self._make())
            return self._made[0]


@contextmanager
def running(weights: str, what: str) -> Iterator[None]:
    """Inference without gradients; what torch or a processor raises becomes a ModelError."""
    try:
        with torch.inference_mode():
            yield
    except (RuntimeError, ValueError) as error:  # torch's out-of-memory is a RuntimeError
        raise ModelError(f"{weights!r} failed on {what}: {first_line(error)}") from error


def unit_rows(features: torch.Tensor) -> FloatArray:
    """Features (n, d) of any float type as float32 rows of L2 norm 1."""
    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    return np.asarray(unit.cpu().numpy(), dtype=np.float32)


def contract_of(
    family: str, spec: ModelSpec, weights: str, model: torch.nn.Module, preprocessing: str, dim: int
) -> EncoderContract:
    """The contract of an opened model of torch."""
    return EncoderContract(
        name=family,
        weights=weights,
        revision=spec.revision,
        weights_digest=weights_digest(model),
        preprocessing=preprocessing,
        dim=dim,
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
    )


def transformed(
    images: Sequence[Image.Image],
    transform: Callable[[Image.Image], torch.Tensor],
    crops: bool,
    model: torch.nn.Module,
) -> torch.Tensor:
    """Photos through a library's own transform, one by one, as the model takes them: (n, 3, h, w)."""
    shown = [without_sliver(image) for image in images] if crops else images
    return torch.stack([transform(image) for image in shown]).to(next(model.parameters()))


def without_sliver(image: Image.Image) -> Image.Image:
    """Cut the ends off a long and thin image, equally, as a centre crop would after resizing it whole."""
    width, height = image.size
    excess = max(width, height) - MAX_ASPECT_RATIO * min(width, height)
    if excess <= 1:
        return image
    cut = excess // 2
    return image.crop((cut, 0, width - cut, height) if width > height else (0, cut, width, height - cut))
