"""The one table of names: what a YAML file may call, the class behind each name, and what it can do.

Classes are named by string and imported on first use, so listing costs nothing. Another package adds to
the table through an entry point of the kind's group, `lmm_classifier.<kind>s`; built-in names win.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Literal

from lmm_classifier.errors import ConfigError

Kind = Literal["step", "encoder", "chooser", "detector", "segmenter", "panoptic", "classifier", "captioner"]

CHECKPOINT_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
"""Of a repository on the hub: weights as safetensors only; configuration, processor and tokenizer."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of a name before its class is imported.

    Attributes:
        target: "module:class".
        takes_texts: of an encoder, whether it also puts texts into the space of its images.
        asks_a_server: of a chooser, whether the model is elsewhere.
        weights: of a model, what a spec without weights means; "" where it has none or brings them along.
        licence: of these weights, SPDX identifier, as their model card said in 2026.
        hub_id: where these weights are, if not under their own name.
        files: what is needed of that repository.
    """

    target: str
    takes_texts: bool = False
    asks_a_server: bool = False
    weights: str = ""
    licence: str = ""
    hub_id: str = ""
    files: tuple[str, ...] = CHECKPOINT_FILES


BUILTINS: Mapping[Kind, Mapping[str, Entry]] = {
    "step": {  # in data-flow order
        "detect": Entry("lmm_classifier.steps.detect:Detect"),
        "focus": Entry("lmm_classifier.steps.focus:Focus"),
        "segment": Entry("lmm_classifier.steps.segment:Segment"),
        "segment_panoptic": Entry("lmm_classifier.steps.segment_panoptic:SegmentPanoptic"),
        "embed": Entry("lmm_classifier.steps.embed:Embed"),
        "retrieve": Entry("lmm_classifier.steps.retrieve:Retrieve"),
        "vote": Entry("lmm_classifier.steps.vote:Vote"),
        "text_prior": Entry("lmm_classifier.steps.text_prior:TextPrior"),
        "open_set": Entry("lmm_classifier.steps.open_set:OpenSet"),
        "rerank": Entry("lmm_classifier.steps.rerank:Rerank"),
        "caption": Entry("lmm_classifier.steps.caption:Caption"),
        "label": Entry("lmm_classifier.steps.label:Label"),
        "zero_shot": Entry("lmm_classifier.steps.zero_shot:ZeroShot"),
        "classify": Entry("lmm_classifier.collection.step:Classify"),
    },
    "encoder": {
        "siglip": Entry(
            "lmm_classifier.models.encoders.siglip:SiglipEncoder",
            takes_texts=True,
            weights="google/siglip-so400m-patch14-384",
            licence="Apache-2.0",
        ),
        "clip": Entry(
            "lmm_classifier.models.encoders.clip:ClipEncoder",
            takes_texts=True,
            weights="ViT-B-32-quickgelu/openai",
            licence="MIT",
            hub_id="timm/vit_base_patch32_clip_224.openai",
        ),
        "dinov2": Entry(
            "lmm_classifier.models.encoders.dinov2:DinoV2Encoder",
            weights="facebook/dinov2-base",
            licence="Apache-2.0",
        ),
        "dinov2-timm": Entry(
            "lmm_classifier.models.encoders.dinov2_timm:TimmDinoV2Encoder",
            weights="timm/vit_base_patch14_dinov2.lvd142m",
            licence="Apache-2.0",
        ),
        "dinov3": Entry("lmm_classifier.models.encoders.dinov3:DinoV3Encoder"),
        "dinov3-patch": Entry("lmm_classifier.models.encoders.dinov3:DinoV3PatchEncoder"),
        "onnx": Entry("lmm_classifier.models.encoders.onnx:OnnxEncoder"),
        "descriptor": Entry("lmm_classifier.models.encoders.descriptor:DescriptorEncoder"),
        "fake": Entry("lmm_classifier.models.fake:FakeEncoder", takes_texts=True),
    },
    "chooser": {
        "qwen-vl": Entry(
            "lmm_classifier.models.vlm.qwen_vl:QwenVLChooser",
            weights="Qwen/Qwen2-VL-7B-Instruct",
            licence="Apache-2.0",
        ),
        "openai_api": Entry("lmm_classifier.models.vlm.openai_api:OpenAIChooser", asks_a_server=True),
        "fake": Entry("lmm_classifier.models.fake:FakeChooser"),
    },
    "detector": {
        "faster-rcnn": Entry("lmm_classifier.models.faster_rcnn:FasterRcnnDetector"),
        "mtcnn": Entry("lmm_classifier.models.mtcnn:MtcnnDetector"),
        "objects": Entry(
            "lmm_classifier.models.object_detector:ObjectDetector",
            weights="PekingU/rtdetr_v2_r18vd",
            licence="Apache-2.0",
        ),
        "fake": Entry("lmm_classifier.models.fake:FakeDetector"),
    },
    "segmenter": {
        "sam2": Entry(
            "lmm_classifier.models.segmentation.sam2_onnx:Sam2Segmenter",
            weights="SharpAI/sam2-hiera-tiny-onnx",
            licence="Apache-2.0",
            files=("encoder.onnx", "decoder.onnx"),
        ),
        "fake": Entry("lmm_classifier.models.fake:FakeSegmenter"),
    },
    "panoptic": {
        "detr-panoptic": Entry(
            "lmm_classifier.models.segmentation.detr_panoptic_onnx:DetrPanoptic",
            weights="Xenova/detr-resnet-50-panoptic",
            licence="Apache-2.0",
            files=("onnx/model.onnx", "config.json"),
        ),
        "fake": Entry("lmm_classifier.models.fake:FakePanoptic"),
    },
    "classifier": {
        "image-classifier": Entry(
            "lmm_classifier.models.image_classifier:ImageClassifier",
            weights="facebook/convnext-tiny-224",
            licence="Apache-2.0",
        ),
        "fake": Entry("lmm_classifier.models.fake:FakeClassifier"),
    },
    "captioner": {
        "blip": Entry(
            "lmm_classifier.models.blip:BlipCaptioner",
            weights="Salesforce/blip-image-captioning-base",
            licence="BSD-3-Clause",
        ),
        "image-text-to-text": Entry("lmm_classifier.models.image_text_to_text:ChatCaptioner"),
        "fake": Entry("lmm_classifier.models.fake:FakeCaptioner"),
    },
}


def entry(kind: Kind, name: str) -> Entry | None:
    """What is known of a built-in name; None of one of another package, whose class must be asked."""
    return BUILTINS[kind].get(name)


def names(kind: Kind) -> tuple[str, ...]:
    """Built-in names in their order, then those of installed plug-ins, sorted."""
    builtin = BUILTINS[kind]
    plugins = {plugin.name for plugin in entry_points(group=f"lmm_classifier.{kind}s")}
    return (*builtin, *sorted(plugins - builtin.keys()))


def resolve(kind: Kind, name: str) -> Any:
    """Import and return the class registered under `name`.

    Raises:
        ConfigError: no such name; the message proposes the nearest one.
    """
    if known := entry(kind, name):
        module, _, attribute = known.target.partition(":")
        return getattr(import_module(module), attribute)
    for plugin in entry_points(group=f"lmm_classifier.{kind}s", name=name):
        return plugin.load()
    raise ConfigError(f"unknown {kind} {name!r}{did_you_mean(name, names(kind))}")


def check(kind: Kind, name: str) -> None:
    """For settings, which are checked before anything is imported.

    Raises:
        ValueError: no such name.
    """
    if name not in BUILTINS[kind] and name not in names(kind):
        raise ValueError(f"unknown {kind} {name!r}{did_you_mean(name, names(kind))}")


def check_takes_texts(encoder: str) -> None:
    """For settings, as `check`; one of another package is asked when it is opened (`load_text_encoder`).

    Raises:
        ValueError: a built-in encoder that takes no texts.
    """
    known = entry("encoder", encoder)
    if known is not None and not known.takes_texts:
        raise ValueError(takes_no_texts(encoder))


def takes_no_texts(encoder: str) -> str:
    """The error about an encoder that was to encode texts and cannot."""
    return f"encoder {encoder!r} takes no texts; use siglip or clip"


def did_you_mean(wrong: str, known: tuple[str, ...]) -> str:
    """The tail of an error about a misspelt name: the nearest known one, or all of them."""
    if near := get_close_matches(wrong, known, n=1):
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(known)}"
