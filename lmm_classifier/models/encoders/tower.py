"""The base of every encoder that runs in torch, and the one of those that transformers opens."""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor

from lmm_classifier.errors import ModelError
from lmm_classifier.models.runtime.inference import LARGEST_COMPILED, UNLIMITED, Batches, padded
from lmm_classifier.models.runtime.options import refuse_untaken
from lmm_classifier.models.runtime.pretrained import (
    preprocessing_of,
    pretrained,
    pretrained_model,
    weights_digest,
)
from lmm_classifier.models.runtime.resizing import without_sliver
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.types import EncoderContract, FloatArray

_T = TypeVar("_T")


class TorchEncoder(ABC):
    """An opened image model and everything that its family need not know.

    A family opens the model and says how photos become its input, and which output is the vector.

    Args:
        spec: what was asked for.
        weights: of the spec, or the family's default.
        model: on its device, ready for inference; takes what `_inputs` gives as keyword arguments.
        preprocessing: canonical JSON for the contract.
        dim: d.
        input_size: px of the shorter side of a photo that the model makes use of; None: all.
    """

    family: ClassVar[str]

    def __init__(
        self,
        spec: ModelSpec,
        weights: str,
        model: torch.nn.Module,
        preprocessing: str,
        dim: int,
        input_size: int | None,
    ) -> None:
        self._spec = spec
        self._weights = weights
        self._model: Any = model
        # Every shape costs a compilation, so that their number must be small.
        self._forward = torch.compile(model, dynamic=False) if spec.compile else model
        self._images = Batches(weights, "images", LARGEST_COMPILED if spec.compile else UNLIMITED)
        self._input_size = input_size
        example = next(model.parameters())
        self._device, self._dtype = example.device, example.dtype
        self._contract = EncoderContract(
            name=self.family,
            weights=weights,
            revision=spec.revision,
            weights_digest=weights_digest(model),
            preprocessing=preprocessing,
            dim=dim,
            dtype=str(example.dtype).removeprefix("torch."),
        )

    @property
    def contract(self) -> EncoderContract:
        return self._contract

    @property
    def input_size(self) -> int | None:
        return self._input_size

    def encode(self, images: Sequence[Image.Image]) -> FloatArray:
        if not images:
            return self._no_rows
        return self._images.unit_rows(images, lambda part: self._features(self._inputs(part)))

    def encode_raw(self, images: Sequence[Image.Image]) -> FloatArray:
        if not images:
            return self._no_rows
        return self._images.raw_rows(images, lambda part: self._features(self._inputs(part)))

    @abstractmethod
    def _inputs(self, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """Photos as the model takes them; the first axis of every tensor is n."""

    def _features(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The vectors (n, d) of a forward pass."""
        if not self._spec.compile:
            return self._pick(self._forward(**inputs))
        n = len(next(iter(inputs.values())))
        return self._pick(self._forward(**padded(inputs)))[:n]

    @abstractmethod
    def _pick(self, output: Any) -> torch.Tensor:
        """The vectors (n, d) among the outputs of the model."""

    @property
    def _no_rows(self) -> FloatArray:
        return np.empty((0, self._contract.dim), np.float32)


class VisionTower(TorchEncoder):
    """An image model of transformers and the image processor that came with it.

    A family names the architectures it takes, and which output is the vector.
    """

    title: ClassVar[str]
    default_weights: ClassVar[str]
    towers: ClassVar[Mapping[str, Any]]
    """`model_type` of a checkpoint -> the class of transformers that runs it."""

    def __init__(self, spec: ModelSpec) -> None:
        refuse_untaken(spec, "compile")
        weights = spec.weights or self.default_weights
        config = pretrained(AutoConfig.from_pretrained, spec, weights)
        if config.model_type not in self.towers:
            raise ModelError(
                f"model {weights!r} is a {config.model_type!r} checkpoint, not a {self.title} one"
            )
        self._model_type: str = config.model_type
        self._processor = pretrained(AutoImageProcessor.from_pretrained, spec, weights)
        self._crops = bool(getattr(self._processor, "do_center_crop", False))
        model = pretrained_model(self.towers[self._model_type].from_pretrained, spec, weights)
        super().__init__(
            spec,
            weights,
            model,
            preprocessing_of(self._processor),
            model.config.hidden_size,
            _input_size(self._processor.to_dict()),
        )

    def _inputs(self, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        shown = [without_sliver(image) for image in images] if self._crops else list(images)
        inputs = dict(self._processor(images=shown, return_tensors="pt").to(self._device))
        return {**inputs, "pixel_values": inputs["pixel_values"].to(self._dtype)}

    def _pick(self, output: Any) -> torch.Tensor:
        pooled: torch.Tensor = output.pooler_output
        return pooled


class TransformEncoder(TorchEncoder):
    """An image model whose library hands out one transform per photo, and whose output is the vector.

    Args:
        transform: of one photo, (3, h, w); it crops the centre if `crops`.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: str,
        model: torch.nn.Module,
        preprocessing: str,
        dim: int,
        input_size: int,
        *,
        transform: Callable[[Image.Image], torch.Tensor],
        crops: bool,
    ) -> None:
        super().__init__(spec, weights, model, preprocessing, dim, input_size)
        self._transform = transform
        self._crops = crops

    def _inputs(self, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        shown = [without_sliver(image) for image in images] if self._crops else images
        pixels = torch.stack([self._transform(image) for image in shown])
        return {"x": pixels.to(self._device, self._dtype)}

    def _pick(self, output: Any) -> torch.Tensor:
        vectors: torch.Tensor = output
        return vectors


class OnFirstUse(Generic[_T]):
    """Something that is opened when it is first asked for: once, however many threads ask."""

    def __init__(self, make: Callable[[], _T]) -> None:
        self._make = make
        self._made: list[_T] = []
        self._lock = threading.Lock()

    def __call__(self) -> _T:
        with self._lock:
            if not self._made:
                self._made.append(self._make())
            return self._made[0]


def _input_size(processing: Mapping[str, Any]) -> int | None:
    """Px of the shorter side after the resizing that an image processor of transformers describes."""
    if not processing.get("do_resize") or processing.get("resample") == Image.Resampling.NEAREST:
        return None  # nearest takes single pixels, and a reduced decode would hand it means
    if patches := processing.get("max_num_patches"):
        # Of native aspect ratio: h x w patches with h * w <= max_num_patches, so that the shorter side
        # has at most the root of them; rounding up to whole patches may ask one more of the longer side.
        return (math.isqrt(patches - 1) + 2) * int(processing["patch_size"])
    size = {name: side for name, side in (processing.get("size") or {}).items() if side}
    if size.keys() == {"height", "width"} or size.keys() == {"shortest_edge"}:
        return int(max(size.values()))  # the shorter side of an upright photo may become the longer one
    return None
