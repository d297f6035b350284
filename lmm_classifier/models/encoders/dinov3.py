"""DINOv3 vision transformers. Their licence must be accepted by a person, so no weights are the default."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from transformers import DINOv3ViTModel

from lmm_classifier.errors import ModelError, ModelUnavailableError
from lmm_classifier.models.encoders.tower import VisionTower
from lmm_classifier.models.runtime.pretrained import is_local
from lmm_classifier.models.spec import ModelSpec

_PUBLISHED = "facebook/dinov3-vitb16-pretrain-lvd1689m"


class DinoV3Encoder(VisionTower):
    """The class token after the last norm, L2-normalised."""

    family: ClassVar = "dinov3"
    title: ClassVar = "DINOv3 ViT"
    default_weights: ClassVar = ""
    towers: ClassVar = {"dinov3_vit": DINOv3ViTModel}

    def __init__(self, spec: ModelSpec) -> None:
        if not spec.weights:
            raise ModelError(
                f"encoder {self.family!r} has no default weights: {_access(_PUBLISHED)}, "
                f"then set weights: {_PUBLISHED}"
            )
        try:
            super().__init__(spec)
        except ModelUnavailableError as error:
            if is_local(spec.weights):
                raise
            raise ModelUnavailableError(f"{error}; DINOv3 is gated: {_access(spec.weights)}") from error


class DinoV3PatchEncoder(DinoV3Encoder):
    """The mean of the patch tokens, L2-normalised: neither the class token nor the registers count."""

    family: ClassVar = "dinov3-patch"

    def _pick(self, output: Any) -> torch.Tensor:
        tokens: torch.Tensor = output.last_hidden_state  # (n, 1 + registers + patches, d)
        return tokens[:, 1 + self._model.config.num_register_tokens :].float().mean(dim=1)


def _access(weights: str) -> str:
    return f"accept the licence at https://huggingface.co/{weights} and run `hf auth login`"
