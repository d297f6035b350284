"""CLIP models of open_clip: photos and texts in one space."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict

from lmm_classifier.errors import ModelError
from lmm_classifier.models.encoders.tower import OnFirstUse, TransformEncoder
from lmm_classifier.models.runtime.default_checkpoints import default_weights
from lmm_classifier.models.runtime.inference import Batches
from lmm_classifier.models.runtime.options import refuse_untaken
from lmm_classifier.models.runtime.pretrained import (
    checkpoint_folder,
    dtype_of,
    for_inference,
    is_local,
    local_path,
    opening,
    refuse_missing,
)
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.registry import did_you_mean
from lmm_classifier.types import FloatArray

_DEFAULT_WEIGHTS = default_weights("clip")
_CONFIG = "open_clip_config.json"
# Today's name, and an older one.
_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
_TOKENIZER = ("tokenizer*", "special_tokens_map.json", "vocab.*", "merges.txt", "*.model")


class ClipEncoder(TransformEncoder):
    """The projected outputs of the two towers, L2-normalised. The text tower is kept when it is asked.

    Weights are "architecture/tag" of open_clip, a hub id ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K"), or a
    local folder with `open_clip_config.json` and safetensors, or that safetensors file.
    """

    family: ClassVar = "clip"

    def __init__(self, spec: ModelSpec) -> None:
        refuse_untaken(spec, "compile")
        weights = (spec.weights or _DEFAULT_WEIGHTS).removeprefix("hf-hub:")
        self._checkpoint = _find(spec, weights)
        visual = _open(spec, weights, self._checkpoint, "visual.").visual
        settings = merge_preprocess_dict(
            PreprocessCfg(), {**self._checkpoint.preprocessing, "size": visual.image_size}
        )
        with opening(spec, weights):
            transform = image_transform_v2(PreprocessCfg(**settings), is_train=False)
        decides = {"transform": settings, "tower": _tower(self._checkpoint.architecture)}
        super().__init__(
            spec,
            weights,
            for_inference(visual.to(dtype_of(spec)), spec, weights),
            json.dumps(decides, sort_keys=True),
            self._checkpoint.architecture["embed_dim"],
            int(np.max(settings["size"])),  # one side, or height and width
            transform=transform,
            crops=settings["resize_mode"] == "shortest",
        )
        self._text = OnFirstUse(self._open_text)
        self._texts = Batches(self._weights, "texts")
        self._lock = threading.Lock()  # a tokenizer keeps padding and truncation as state

    def encode_text(self, texts: Sequence[str]) -> FloatArray:
        if not texts:
            return self._no_rows
        tokenizer, model = self._text()  # before inference mode begins: it would stick to the weights
        return self._texts.unit_rows(texts, lambda part: self._text_features(part, tokenizer, model))

    def _text_features(self, texts: Sequence[str], tokenizer: Any, model: Any) -> torch.Tensor:
        with self._lock:
            tokens = tokenizer(list(texts))
        features: torch.Tensor = model.encode_text(tokens.to(model.logit_scale.device))
        return features

    def _open_text(self) -> tuple[Any, Any]:
        model = _open(self._spec, self._weights, self._checkpoint, "")
        model.visual = None
        with opening(self._spec, self._weights):
            tokenizer = open_clip.get_tokenizer(self._checkpoint.name)
        return tokenizer, for_inference(model.to(dtype_of(self._spec)), self._spec, self._weights)


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    """One set of weights: what open_clip calls its architecture, settings, and the safetensors file."""

    name: str
    architecture: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    file: Path


def _find(spec: ModelSpec, weights: str) -> _Checkpoint:
    architecture, _, tag = weights.partition("/")
    if architecture in open_clip.list_models():
        return _tagged(spec, weights, architecture, tag)
    path = local_path(weights) if is_local(weights) else None
    if path is not None and path.is_file():
        if path.suffix != ".safetensors":
            raise ModelError(
                f"model file {weights!r} is no .safetensors, and others may run code; convert it"
            )
        folder, file = path.parent, path
    else:
        folder = checkpoint_folder(spec, weights, (_CONFIG, *_WEIGHTS, *_TOKENIZER))
        file = _safetensors(folder, weights)
    with opening(spec, weights):
        settings = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        checkpoint = _Checkpoint(
            f"local-dir:{folder}", dict(settings["model_cfg"]), dict(settings.get("preprocess_cfg", {})), file
        )
        if "multimodal_cfg" in checkpoint.architecture:
            raise ModelError(f"model {weights!r} is a CoCa checkpoint, not a CLIP one")
        return checkpoint


def _tagged(spec: ModelSpec, weights: str, architecture: str, tag: str) -> _Checkpoint:
    settings = open_clip.get_model_config(architecture)
    tags = tuple(open_clip.list_pretrained_tags_by_model(architecture))
    if tag not in tags or "multimodal_cfg" in settings:
        raise ModelError(
            f"open_clip has no CLIP weights {weights!r}, written architecture/tag{did_you_mean(tag, tags)}"
        )
    published = open_clip.get_pretrained_cfg(architecture, tag)
    if published.get("quick_gelu") and not settings.get("quick_gelu"):  # open_clip only warns
        raise ModelError(
            f"model {weights!r} would compute wrong vectors: these weights were trained with QuickGELU; "
            f"use '{architecture}-quickgelu/{tag}'"
        )
    hub_id = "/".join(published["hf_hub"].split("/")[:2])
    folder = checkpoint_folder(spec, weights, _WEIGHTS, hub_id)
    return _Checkpoint(architecture, settings, published, _safetensors(folder, weights))


def _open(spec: ModelSpec, weights: str, checkpoint: _Checkpoint, part: str) -> Any:
    """The whole model as open_clip builds it, with every weight of the part that is asked for."""
    with opening(spec, weights):
        settings = deepcopy(dict(checkpoint.architecture))
        custom = settings.pop("custom_text", False) or "hf_model_name" in settings["text_cfg"]
        settings["text_cfg"]["hf_model_pretrained"] = False  # its weights come with the others
        settings["vision_cfg"]["timm_model_pretrained"] = False
        model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**settings)
        # Never a pickle: by its name the file is safetensors, and open_clip goes by the name.
        report = open_clip.load_checkpoint(model, str(checkpoint.file), strict=False)
    refuse_missing(weights, [name for name in report.missing_keys if name.startswith(part)])
    return model


def _safetensors(folder: Path, weights: str) -> Path:
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise ModelError(
        f"model {weights!r} has no {_WEIGHTS[0]}: it is not of open_clip, or its weights are pickled, and "
        "such are never opened; convert them"
    )


def _tower(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the vectors beside the weights, such as the activation; the same however it is spelt."""
    tower = asdict(open_clip.CLIPVisionCfg(**architecture["vision_cfg"]))
    tower.pop("timm_model_pretrained")
    return {**tower, "quick_gelu": bool(architecture.get("quick_gelu"))}
