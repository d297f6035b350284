"""Panoptic segmentation by DETR as an ONNX file, as transformers.js exports it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lmm_classifier.errors import ModelError
from lmm_classifier.models.runtime.default_checkpoints import default_weights
from lmm_classifier.models.runtime.inference import running
from lmm_classifier.models.runtime.onnx_description import Description, model_input
from lmm_classifier.models.runtime.onnx_session import INT64, BoundModel, Port, files_of, refuse_settings
from lmm_classifier.models.segmentation.base import PanopticSegment
from lmm_classifier.models.segmentation.coco_panoptic import class_names, things
from lmm_classifier.models.segmentation.upsampling import upsampled
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.types import FloatArray

DEFAULT_WEIGHTS = default_weights("detr-panoptic")
FILE, _CONFIG = "onnx/model.onnx", "config.json"
_SHORT, _LONG = 800, 1333  # px: size of DetrImageProcessor
_PAD_MASK = 64  # the export takes a mask of this side, all ones, for photos of any size
_MASK_THRESHOLD, _OVERLAP_THRESHOLD = 0.5, 0.8  # post_process_panoptic_segmentation of transformers
_INPUTS = {
    "pixel_values": Port((1, 3, "any", "any")),
    "pixel_mask": Port((1, _PAD_MASK, _PAD_MASK), INT64),
}
_OUTPUTS = {
    "logits": Port((1, None, None)),
    "pred_boxes": Port((1, None, 4)),
    "pred_masks": Port((1, None, None, None)),
}


class DetrPanoptic:
    """Weights are a folder or hub id with onnx/model.onnx and config.json, or "folder#another.onnx"."""

    def __init__(self, spec: ModelSpec) -> None:
        refuse_settings(spec, "segmenter")
        self._weights = spec.weights or DEFAULT_WEIGHTS
        model, config = files_of(spec, DEFAULT_WEIGHTS, [FILE], [_CONFIG])
        self._model = BoundModel(model, spec.family, _INPUTS, _OUTPUTS)
        self._id2label = _id2label(config, self._weights)
        self._names: dict[int, tuple[str, ...]] = {}

    def segment(
        self, images: Sequence[Image.Image], min_score: float, fuse_stuff: bool
    ) -> list[list[PanopticSegment]]:
        return [self._segments(image, min_score, fuse_stuff) for image in images]

    def _segments(self, image: Image.Image, min_score: float, fuse_stuff: bool) -> list[PanopticSegment]:
        width, height = input_size(image.size)
        preprocessing = Description(
            size=(height, width),
            scale=1 / 255,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            interpolation="bilinear",
        )
        inputs = {
            "pixel_values": model_input([image], preprocessing),
            "pixel_mask": np.ones((1, _PAD_MASK, _PAD_MASK), np.int64),
        }
        answer = self._model.run(inputs, "1 image")
        logits, masks = answer["logits"][0], answer["pred_masks"][0]
        if len(logits) != len(masks):
            raise ModelError(f"{self._weights!r} gave {len(logits)} labels for {len(masks)} masks")
        names = self._names_of(logits.shape[1] - 1)
        is_thing = things(names)
        stuff = frozenset(i for i, thing in enumerate(is_thing) if thing is False) if fuse_stuff else ()
        with running(self._weights, f"masks of {image.width} x {image.height} px"):
            found = divided(logits, masks, image.size, min_score, frozenset(stuff))
        return [PanopticSegment(mask.numpy(), names[i], score, is_thing[i]) for mask, i, score in found]

    def _names_of(self, classes: int) -> tuple[str, ...]:
        """The graph may leave open how many classes there are until it has run; one warning is enough."""
        if classes not in self._names:
            self._names[classes] = class_names(self._id2label, classes, self._weights)
        return self._names[classes]


def input_size(size: tuple[int, int]) -> tuple[int, int]:
    """Width and height of the input for a photo of this width and height in px.

    The shorter side becomes 800 px, or less where the longer one would exceed 1333.
    """
    short, long = sorted(size)
    exact = min(float(_SHORT), _LONG * short / long)
    other = min(int(exact * long / short), _LONG)
    shorter, longer = max(round(exact), 1), max(other, 1)
    return (shorter, longer) if size[0] <= size[1] else (longer, shorter)


def divided(
    logits: FloatArray,
    masks: FloatArray,
    size: tuple[int, int],
    min_score: float,
    fused: frozenset[int],
) -> list[tuple[torch.Tensor, int, float]]:
    """What `post_process_panoptic_segmentation` of transformers gives, one query at a time to spare memory.

    Each pixel goes to the query whose mask times score is largest there. A query keeps its pixels if they
    are more than .8 of those where that product is at least .5.

    Args:
        logits: float32 (queries, classes + 1), "no object" last.
        masks: float32 (queries, h, w), logits.
        size: width and height of the photo.
        min_score: queries with a lower probability take no part.
        fused: classes whose queries become one segment, with the best of their scores.

    Returns:
        mask bool (height, width), class and score of each segment.
    """
    scores, labels = torch.softmax(torch.tensor(logits), -1).max(-1)
    kept = torch.nonzero((labels != logits.shape[1] - 1) & (scores >= min_score)).flatten().tolist()
    best = torch.full(size[::-1], -1.0)
    owner = torch.full(size[::-1], -1, dtype=torch.int32)
    claimed = {}
    for query in kept:
        strength = upsampled(torch.tensor(masks[query]).sigmoid(), size) * scores[query]
        claimed[query] = int((strength >= _MASK_THRESHOLD).sum())
        wins = strength > best
        owner[wins] = query
        best[wins] = strength[wins]
    segments: list[tuple[torch.Tensor, int, float]] = []
    rows: dict[int, int] = {}  # of the fused classes among the segments
    for query in kept:
        mask, label, score = owner == query, int(labels[query]), min(float(scores[query]), 1.0)
        area = int(mask.sum())
        if not area or not claimed[query] or area / claimed[query] <= _OVERLAP_THRESHOLD:
            continue
        if label in rows:
            earlier, _, best_score = segments[rows[label]]
            segments[rows[label]] = (earlier | mask, label, max(score, best_score))
            continue
        if label in fused:
            rows[label] = len(segments)
        segments.append((mask, label, score))
    return segments


def _id2label(config: Path, weights: str) -> dict[int, str]:
    """The names of the classes in a checkpoint's config.json; none if there is no such file."""
    if not config.is_file():
        return {}
    try:
        names = json.loads(config.read_text(encoding="utf-8")).get("id2label", {})
        return {int(key): str(name) for key, name in names.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"model {weights!r} has a config.json without a usable id2label: {error}") from error
