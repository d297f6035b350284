"""The checkpoints that a family means when nobody names weights, and under which licence. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Task = Literal["embed", "rerank", "detect", "segment", "classify", "caption"]
TASKS: tuple[Task, ...] = get_args(Task)
# Weights as safetensors only, and what a configuration, processor or tokenizer consists of.
FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")


@dataclass(frozen=True, slots=True)
class DefaultCheckpoint:
    """A checkpoint of the hub.

    Attributes:
        task: what it is for.
        family: name in the registry.
        weights: as a ModelSpec has them.
        licence: SPDX identifier, as its model card said in 2026.
        hub_id: where it is, if not under the name of the weights.
        files: what is needed of it.
    """

    task: Task
    family: str
    weights: str
    licence: str
    hub_id: str = ""
    files: tuple[str, ...] = FILES


DEFAULTS = (
    DefaultCheckpoint("embed", "siglip", "google/siglip-so400m-patch14-384", "Apache-2.0"),
    DefaultCheckpoint(
        "embed",
        "clip",
        "ViT-B-32-quickgelu/openai",
        "MIT",
        hub_id="timm/vit_base_patch32_clip_224.openai",
    ),
    DefaultCheckpoint("embed", "dinov2", "facebook/dinov2-base", "Apache-2.0"),
    DefaultCheckpoint("embed", "dinov2-timm", "timm/vit_base_patch14_dinov2.lvd142m", "Apache-2.0"),
    DefaultCheckpoint("rerank", "qwen-vl", "Qwen/Qwen2-VL-7B-Instruct", "Apache-2.0"),
    DefaultCheckpoint("detect", "objects", "PekingU/rtdetr_v2_r18vd", "Apache-2.0"),
    DefaultCheckpoint(
        "segment",
        "sam2",
        "SharpAI/sam2-hiera-tiny-onnx",
        "Apache-2.0",
        files=("encoder.onnx", "decoder.onnx"),
    ),
    DefaultCheckpoint(
        "segment",
        "detr-panoptic",
        "Xenova/detr-resnet-50-panoptic",
        "Apache-2.0",
        files=("onnx/model.onnx", "config.json"),
    ),
    DefaultCheckpoint("classify", "image-classifier", "facebook/convnext-tiny-224", "Apache-2.0"),
    DefaultCheckpoint("caption", "blip", "Salesforce/blip-image-captioning-base", "BSD-3-Clause"),
)


def default_weights(family: str) -> str:
    """What a spec without weights means; "" for a family that has none or brings them along."""
    return next((default.weights for default in DEFAULTS if default.family == family), "")
