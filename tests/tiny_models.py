"""Tiny random checkpoints of the real architectures, as their own libraries write them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import open_clip
import timm
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import nn
from transformers import (
    BitImageProcessor,
    Dinov2Config,
    Dinov2Model,
    DINOv3ViTConfig,
    DINOv3ViTImageProcessor,
    DINOv3ViTModel,
    Siglip2Config,
    Siglip2ImageProcessor,
    Siglip2Model,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

TEXT_TOWER: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
VISION_TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
REGISTERS = 3
CLIP_ARCHITECTURE: dict[str, Any] = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


def randomised(model: nn.Module, scale: float) -> Any:
    """Fill every weight with noise: as initialised, biases are 0 and an image hardly changes the output."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            centre = 1.0 if parameter.ndim == 1 and bool((parameter == 1).all()) else 0.0  # of a norm
            parameter.copy_(centre + scale * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def write_siglip(folder: Path) -> str:
    """A whole SigLIP, text tower included, as on the hub."""
    model = SiglipModel(SiglipConfig(text_config=TEXT_TOWER, vision_config=VISION_TOWER))
    randomised(model, 0.15).save_pretrained(folder)
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


def write_siglip2(folder: Path) -> str:
    """SigLIP 2 of native aspect ratio (NaFlex)."""
    vision = {key: value for key, value in VISION_TOWER.items() if key != "image_size"} | {"num_patches": 16}
    model = Siglip2Model(Siglip2Config(text_config=TEXT_TOWER, vision_config=vision))
    randomised(model, 0.15).save_pretrained(folder)
    Siglip2ImageProcessor(patch_size=8, max_num_patches=16).save_pretrained(folder)
    return str(folder)


def write_dinov2(folder: Path) -> str:
    config = Dinov2Config(**{**VISION_TOWER, "mlp_ratio": 2})
    randomised(Dinov2Model(config), 0.15).save_pretrained(folder)
    size, crop = {"shortest_edge": 36}, {"height": 32, "width": 32}
    BitImageProcessor(size=size, crop_size=crop, do_center_crop=True).save_pretrained(folder)
    return str(folder)


def write_dinov3(folder: Path) -> str:
    config = DINOv3ViTConfig(**VISION_TOWER, num_register_tokens=REGISTERS)
    randomised(DINOv3ViTModel(config), 0.15).save_pretrained(folder)
    DINOv3ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


def write_open_clip(folder: Path) -> str:
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    model = randomised(open_clip.CLIP(**CLIP_ARCHITECTURE), 0.15)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    settings = {"model_cfg": CLIP_ARCHITECTURE, "preprocess_cfg": {"mean": [0.48, 0.46, 0.41]}}
    (folder / "open_clip_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return str(folder)


def write_timm(folder: Path) -> str:
    shape = {"img_size": 28, "embed_dim": 32, "depth": 2, "num_heads": 2}
    model = timm.create_model("vit_small_patch14_dinov2.lvd142m", pretrained=False, **shape)
    save_for_hf(randomised(model, 0.15), str(folder), model_args=shape, safe_serialization=True)
    return str(folder)


def write_onnx(folder: Path) -> str:
    """A patch embedding and a token mixer: float32 (n, 3, 32, 32) to tokens (n, 16, 24) and their mean."""
    folder.mkdir(parents=True)
    write_graph(folder / "model.onnx")
    settings = {
        "size": [32, 32],
        "scale": 1 / 255,
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.25],
        "resize": "centre-crop",
        "crop": 0.875,
        "output": "tokens",
        "pooling": "cls",
    }
    (folder / "model.yaml").write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
    return str(folder / "model.onnx")


def write_graph(path: Path, batch: int | str = "n") -> None:
    random = np.random.default_rng(0)
    weights = {
        "kernel": random.normal(size=(24, 3, 8, 8)).astype(np.float32) * 0.1,
        "mixer": random.normal(size=(24, 24)).astype(np.float32),
        "flat": np.asarray([0, 24, 16], np.int64),
    }
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["grid"], strides=[8, 8]),
        helper.make_node("Reshape", ["grid", "flat"], ["columns"]),
        helper.make_node("Transpose", ["columns"], ["rows"], perm=[0, 2, 1]),
        helper.make_node("Tanh", ["rows"], ["bounded"]),
        helper.make_node("MatMul", ["bounded", "mixer"], ["tokens"]),
        helper.make_node("ReduceMean", ["tokens"], ["mean"], axes=[1], keepdims=0),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "tiny",
        [value("image", TensorProto.FLOAT, [batch, 3, 32, 32])],
        [
            value("mean", TensorProto.FLOAT, [batch, 24]),
            value("tokens", TensorProto.FLOAT, [batch, 16, 24]),
            value("grid", TensorProto.FLOAT, [batch, 24, 4, 4]),
        ],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


WRITERS: Mapping[str, Callable[[Path], str]] = {
    "siglip": write_siglip,
    "clip": write_open_clip,
    "dinov2": write_dinov2,
    "dinov2-timm": write_timm,
    "dinov3": write_dinov3,
    "dinov3-patch": write_dinov3,
    "onnx": write_onnx,
}
"""Encoder family -> writes its checkpoint into a new folder and returns the weights of a spec."""
