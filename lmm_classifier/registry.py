"""The one table of names: what a YAML file may call, and the class behind each name.

Classes are named by string and imported on first use, so listing costs nothing. Another package adds to
the table through an entry point of the kind's group, `lmm_classifier.<kind>s`; built-in names win.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Literal

from lmm_classifier.errors import ConfigError

Kind = Literal["step", "encoder", "chooser", "detector", "segmenter", "panoptic", "classifier", "captioner"]

BUILTINS: Mapping[Kind, Mapping[str, str]] = {
    "step": {  # in data-flow order
        "detect": "lmm_classifier.steps.detect:Detect",
        "focus": "lmm_classifier.steps.focus:Focus",
        "segment": "lmm_classifier.steps.segment:Segment",
        "segment_panoptic": "lmm_classifier.steps.segment_panoptic:SegmentPanoptic",
        "embed": "lmm_classifier.steps.embed:Embed",
        "retrieve": "lmm_classifier.steps.retrieve:Retrieve",
        "vote": "lmm_classifier.steps.vote:Vote",
        "text_prior": "lmm_classifier.steps.text_prior:TextPrior",
        "open_set": "lmm_classifier.steps.open_set:OpenSet",
        "rerank": "lmm_classifier.steps.rerank:Rerank",
        "caption": "lmm_classifier.steps.caption:Caption",
        "label": "lmm_classifier.steps.label:Label",
        "zero_shot": "lmm_classifier.steps.zero_shot:ZeroShot",
        "classify": "lmm_classifier.collection.step:Classify",
    },
    "encoder": {
        "siglip": "lmm_classifier.models.encoders.siglip:SiglipEncoder",
        "clip": "lmm_classifier.models.encoders.clip:ClipEncoder",
        "dinov2": "lmm_classifier.models.encoders.dinov2:DinoV2Encoder",
        "dinov2-timm": "lmm_classifier.models.encoders.dinov2_timm:TimmDinoV2Encoder",
        "dinov3": "lmm_classifier.models.encoders.dinov3:DinoV3Encoder",
        "dinov3-patch": "lmm_classifier.models.encoders.dinov3:DinoV3PatchEncoder",
        "onnx": "lmm_classifier.models.encoders.onnx:OnnxEncoder",
        "descriptor": "lmm_classifier.models.encoders.descriptor:DescriptorEncoder",
        "fake": "lmm_classifier.models.fake:FakeEncoder",
    },
    "chooser": {
        "qwen-vl": "lmm_classifier.models.vlm.qwen_vl:QwenVLChooser",
        "openai_api": "lmm_classifier.models.vlm.openai_api:OpenAIChooser",
        "fake": "lmm_classifier.models.fake:FakeChooser",
    },
    "segmenter": {
        "sam2": "lmm_classifier.models.segmentation.sam2_onnx:Sam2Segmenter",
        "fake": "lmm_classifier.models.fake:FakeSegmenter",
    },
    "panoptic": {
        "detr-panoptic": "lmm_classifier.models.segmentation.detr_panoptic_onnx:DetrPanoptic",
        "fake": "lmm_classifier.models.fake:FakePanoptic",
    },
    "detector": {
        "faster-rcnn": "lmm_classifier.models.faster_rcnn:FasterRcnnDetector",
        "mtcnn": "lmm_classifier.models.mtcnn:MtcnnDetector",
        "objects": "lmm_classifier.models.object_detector:ObjectDetector",
        "fake": "lmm_classifier.models.fake:FakeDetector",
    },
    "classifier": {
        "image-classifier": "lmm_classifier.models.image_classifier:ImageClassifier",
        "fake": "lmm_classifier.models.fake:FakeClassifier",
    },
    "captioner": {
        "blip": "lmm_classifier.models.blip:BlipCaptioner",
        "image-text-to-text": "lmm_classifier.models.image_text_to_text:ChatCaptioner",
        "fake": "lmm_classifier.models.fake:FakeCaptioner",
    },
}

IMAGE_ONLY = frozenset({"dinov2", "dinov2-timm", "dinov3", "dinov3-patch", "onnx", "descriptor"})
"""Built-in encoders that take no texts: settings are checked before the class could be asked."""


def names(kind: Kind) -> tuple[str, ...]:
    """Built-in names in their order, then those of installed plug-ins, sorted."""
    builtin = BUILTINS[kind]
    plugins = {entry.name for entry in entry_points(group=f"lmm_classifier.{kind}s")}
    return (*builtin, *sorted(plugins - builtin.keys()))


def resolve(kind: Kind, name: str) -> Any:
    """Import and return the class registered under `name`.

    Raises:
        ConfigError: no such name; the message proposes the nearest one.
    """
    if target := BUILTINS[kind].get(name):
        module, _, attribute = target.partition(":")
        return getattr(import_module(module), attribute)
    for entry in entry_points(group=f"lmm_classifier.{kind}s", name=name):
        return entry.load()
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
    if encoder in IMAGE_ONLY:
        raise ValueError(takes_no_texts(encoder))


def takes_no_texts(encoder: str) -> str:
    """The error about an encoder that was to encode texts and cannot."""
    return f"encoder {encoder!r} takes no texts; use siglip or clip"


def did_you_mean(wrong: str, known: tuple[str, ...]) -> str:
    """The tail of an error about a misspelt name: the nearest known one, or all of them."""
    if near := get_close_matches(wrong, known, n=1):
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(known)}"
