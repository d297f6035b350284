"""DINOv2 as timm runs it: with published weights, the centre 518 px of a photo of 518."""

from __future__ import annotations

import json
import math
from typing import Any, ClassVar

import timm
from safetensors.torch import load_file
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from timm.models.vision_transformer import checkpoint_filter_fn

from lmm_classifier.errors import ModelError
from lmm_classifier.models.encoders.tower import TransformEncoder
from lmm_classifier.models.runtime.default_checkpoints import default_weights
from lmm_classifier.models.runtime.options import refuse_untaken
from lmm_classifier.models.runtime.pretrained import (
    checkpoint_folder,
    dtype_of,
    for_inference,
    opening,
    refuse_missing,
)
from lmm_classifier.models.spec import ModelSpec

_DEFAULT_WEIGHTS = default_weights("dinov2-timm")
_FILES = ("config.json", "model.safetensors")


class TimmDinoV2Encoder(TransformEncoder):
    """The class token after the last norm, L2-normalised; of more pixels than `dinov2` looks at."""

    family: ClassVar = "dinov2-timm"

    def __init__(self, spec: ModelSpec) -> None:
        refuse_untaken(spec, "compile")
        weights = spec.weights or _DEFAULT_WEIGHTS
        folder = checkpoint_folder(spec, weights, _FILES)
        with opening(spec, weights):
            architecture = str(json.loads((folder / _FILES[0]).read_text(encoding="utf-8"))["architecture"])
            if "dinov2" not in architecture:
                raise ModelError(f"model {weights!r} is a {architecture!r} checkpoint, not a DINOv2 one")
            model: Any = timm.create_model(f"local-dir:{folder}", pretrained=False, num_classes=0)
            state = checkpoint_filter_fn(load_file(folder / _FILES[1]), model)
            report = model.load_state_dict(state, strict=False)
        refuse_missing(weights, report.missing_keys)
        settings = resolve_model_data_config(model)
        decides = {"transform": settings, "architecture": architecture, "pool": model.global_pool}
        super().__init__(
            spec,
            weights,
            for_inference(model.to(dtype_of(spec)), spec, weights),
            json.dumps(decides, sort_keys=True),
            model.num_features,
            math.ceil(max(settings["input_size"][1:]) / settings["crop_pct"]),
            transform=create_transform(**settings, is_training=False),
            crops=settings["crop_mode"] == "center",
        )
