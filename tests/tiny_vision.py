"""Tiny random checkpoints of detectors, classifiers and captioners, as their own libraries write them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextImageProcessor,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrImageProcessor,
    RTDetrResNetConfig,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessor,
)

from tiny_models import VISION_TOWER, randomised

CATEGORIES = ("background", "person", "dog", "cup")
SIDES = {"min_size": 64, "max_size": 96}
THINGS = ("person", "dog", "cup")
CLASSES = ("tench, Tinca tinca", "goldfish, Carassius auratus", "daisy", "cock", "hen")
WORDS = tuple(
    "[PAD] [UNK] [CLS] [SEP] [MASK] [DEC] a an and of on in the with photo picture red dog cat is".split(" ")  # noqa: SIM905
)


def names(labels: tuple[str, ...]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}


def faster_rcnn_state(n_classes: int) -> dict[str, torch.Tensor]:
    """Random weights with statistics of batch normalisation that are not those of an untrained network."""
    torch.manual_seed(0)
    model = FasterRCNN(resnet_fpn_backbone(backbone_name="resnet50", weights=None), num_classes=n_classes)
    state = model.state_dict()
    for name, tensor in state.items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
    return state


def write_faster_rcnn(folder: Path) -> str:
    folder.mkdir(parents=True)
    save_file(faster_rcnn_state(len(CATEGORIES)), folder / "model.safetensors")
    settings = {"categories": CATEGORIES, **SIDES}
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    return str(folder)


def write_rt_detr(folder: Path) -> str:
    widths = [8, 16, 16]
    backbone = RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, *widths],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = RTDetrConfig(
        backbone_config=backbone,
        encoder_in_channels=widths,
        encoder_hidden_dim=16,
        encoder_ffn_dim=16,
        encoder_attention_heads=2,
        d_model=16,
        num_queries=12,
        decoder_in_channels=[16, 16, 16],
        decoder_ffn_dim=16,
        decoder_layers=2,
        decoder_attention_heads=2,
        num_denoising=0,
        **names(THINGS),
    )
    randomised(RTDetrForObjectDetection(config), 0.15).save_pretrained(folder)
    RTDetrImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return str(folder)


def write_yolos(folder: Path) -> str:
    config = YolosConfig(**VISION_TOWER | {"image_size": [64, 64]}, num_detection_tokens=6, **names(THINGS))
    randomised(YolosForObjectDetection(config), 0.15).save_pretrained(folder)
    YolosImageProcessor(size={"shortest_edge": 64, "longest_edge": 1333}).save_pretrained(folder)
    return str(folder)


def write_convnext(folder: Path, **config: Any) -> str:
    settings = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], **names(CLASSES), **config}
    randomised(ConvNextForImageClassification(ConvNextConfig(**settings)), 0.3).save_pretrained(folder)
    ConvNextImageProcessor(size={"shortest_edge": 32}).save_pretrained(folder)
    return str(folder)


def write_blip(folder: Path) -> str:
    text = {
        "vocab_size": len(WORDS),
        "hidden_size": 32,
        "encoder_hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 80,
        "pad_token_id": 0,
        "bos_token_id": 5,
        "eos_token_id": 2,
        "sep_token_id": 3,
    }
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=VISION_TOWER))
    randomised(model, 0.6).save_pretrained(folder)
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return str(folder)


WRITERS: Mapping[str, Callable[[Path], str]] = {
    "faster-rcnn": write_faster_rcnn,
    "objects": write_rt_detr,
    "image-classifier": write_convnext,
    "blip": write_blip,
}
"""Family of a detector, classifier or captioner -> writes its checkpoint, returns the weights of a spec."""
