"""SigLIP and SigLIP 2 vision towers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, Siglip2VisionModel, SiglipVisionModel

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

DEFAULT_WEIGHTS = "google/siglip-so400m-patch14-384"
# SigLIP 2 of fixed resolution is of the first type, of native aspect ratio of the second.
TOWERS: dict[str, Any] = {
    "siglip": SiglipVisionModel,
    "siglip_vision_model": SiglipVisionModel,
    "siglip2": Siglip2VisionModel,
    "siglip2_vision_model": Siglip2VisionModel,
}


class SiglipEncoder:
    """The pooled output of the vision tower, L2-normalised. The text tower is not loaded."""

    def __init__(self, spec: ModelSpec) -> None:
        weights = spec.weights or DEFAULT_WEIGHTS
        config = pretrained(AutoConfig.from_pretrained, spec, weights)
        if config.model_type not in TOWERS:
            raise ModelError(f"model {weights!r} is a {config.model_type!r} checkpoint, not a SigLIP one")
        self._processor = pretrained(AutoImageProcessor.from_pretrained, spec, weights)
        self._model = pretrained_model(TOWERS[config.model_type].from_pretrained, spec, weights)
        if not self._model.use_head:
            raise ModelError(f"model {weights!r} has no pooling head, hence no vector of an image")
        self._contract = EncoderContract(
            name="siglip",
            weights=weights,
            revision=spec.revision,
            weights_digest=weights_digest(self._model),
            preprocessing=preprocessing_of(self._processor),
            dim=self._model.config.hidden_size,
            dtype=str(self._model.dtype).removeprefix("torch."),
        )

    @property
    def contract(self) -> EncoderContract:
        return self._contract

    def encode(self, images: Sequence[Image.Image]) -> FloatArray:
        if not images:
            return np.empty((0, self._contract.dim), np.float32)
        try:
            inputs = self._processor(images=list(images), return_tensors="pt").to(self._model.device)
            inputs["pixel_values"] = inputs["pixel_values"].to(self._model.dtype)
            with torch.inference_mode():
                pooled = self._model(**inputs).pooler_output  # (n, d)
        except (RuntimeError, ValueError) as error:  # torch's out-of-memory is a RuntimeError
            raise ModelError(
                f"{self._contract.weights!r} failed on {len(images)} images: {first_line(error)}"
            ) from error
        unit = torch.nn.functional.normalize(pooled.float(), dim=-1)
        return np.asarray(unit.cpu().numpy(), dtype=np.float32)
