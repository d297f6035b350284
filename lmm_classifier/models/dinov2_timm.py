"""DINOv2 as timm runs it: with published weights, the centre 518 px of a photo of 518."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import timm
from PIL import Image
from safetensors.torch import load_file
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from timm.models.vision_transformer import checkpoint_filter_fn

from lmm_classifier.errors import ModelError
from lmm_classifier.models.base import ModelSpec
from lmm_classifier.models.pretrained import (
    checkpoint_folder,
    dtype_of,
    for_inference,
    opening,
    refuse_missing,
)
from lmm_classifier.models.tower import contract_of, running, transformed, unit_rows
from lmm_classifier.types import EncoderContract, FloatArray

DEFAULT_WEIGHTS = "timm/vit_base_patch14_dinov2.lvd142m"
FILES = ("config.json", "model.safetensors")


class TimmDinoV2Encoder:
    """The class token after the last norm, L2-normalised; of more pixels than `dinov2` looks at."""

    def __init__(self, spec: ModelSpec) -> None:
        self._weights = spec.weights or DEFAULT_WEIGHTS
        folder = checkpoint_folder(spec, self._weights, FILES)
        with opening(spec, self._weights):
            architecture = str(json.loads((folder / FILES[0]).read_text(encoding="utf-8"))["architecture"])
            if "dinov2" not in architecture:
                raise ModelError(
                    f"model {self._weights!r} is a {architecture!r} checkpoint, not a DINOv2 one"
                )
            model: Any = timm.create_model(f"local-dir:{folder}", pretrained=False, num_classes=0)
            state = checkpoint_filter_fn(load_file(folder / FILES[1]), model)
            report = model.load_state_dict(state, strict=False)
        refuse_missing(self._weights, report.missing_keys)
        self._model = for_inference(model.to(dtype_of(spec)), spec, self._weights)
        settings = resolve_model_data_config(model)
        self._transform = create_transform(**settings, is_training=False)
        self._crops = settings["crop_mode"] == "center"
        decides = {"transform": settings, "architecture": architecture, "pool": model.global_pool}
        self._contract = contract_of(
            "dinov2-timm",
            spec,
            self._weights,
            self._model,
            json.dumps(decides, sort_keys=True),
            model.num_features,
        )

    @property
    def contract(self) -> EncoderContract:
        return self._contract

    def encode(self, images: Sequence[Image.Image]) -> FloatArray:
        if not images:
            return np.empty((0, self._contract.dim), np.float32)
        with running(self._weights, f"{len(images)} images"):
            return unit_rows(self._model(transformed(images, self._transform, self._crops, self._model)))
