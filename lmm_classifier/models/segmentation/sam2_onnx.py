"""SAM 2 as two ONNX files: one looks at a photo, the other answers prompts about it.

Names and shapes are those that samexporter writes. The decoder adds half a pixel to coordinates, appends a
padding point and divides by the size of its input: none of it is done here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from lmm_classifier.errors import ModelError
from lmm_classifier.models.runtime.default_checkpoints import default_weights
from lmm_classifier.models.runtime.inference import running
from lmm_classifier.models.runtime.onnx_description import Description, model_input
from lmm_classifier.models.runtime.onnx_session import BoundModel, Port, files_of, refuse_settings
from lmm_classifier.models.segmentation.base import Candidates
from lmm_classifier.models.segmentation.point_prompts import Cue
from lmm_classifier.models.segmentation.upsampling import upsampled
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.types import BoolArray, FloatArray

DEFAULT_WEIGHTS = default_weights("sam2")
FILES = ("encoder.onnx", "decoder.onnx")
_SIDE = 1024  # px of the input: config.json of the default weights, image_size
_GRID = 256  # cells of a mask: the same, mask_size
_OUTSIDE, _INSIDE, _UPPER_LEFT, _LOWER_RIGHT = 0, 1, 2, 3  # labels of points: prompt_encoder.py of SAM 2
_FEATURES = {
    "high_res_feats_0": Port((1, 32, 256, 256)),
    "high_res_feats_1": Port((1, 64, 128, 128)),
    "image_embed": Port((1, 256, 64, 64)),
}
_PROMPT = {
    "point_coords": Port((1, "any", 2)),
    "point_labels": Port((1, "any")),
    "mask_input": Port((1, 1, _GRID, _GRID)),
    "has_mask_input": Port((1,)),
}
_ANSWER = {"masks": Port((1, None, _GRID, _GRID)), "iou_predictions": Port((1, None))}
# SAM2Transforms: the whole photo, its aspect ratio ignored, normalised as for ImageNet.
_PREPROCESSING = Description(
    size=(_SIDE, _SIDE),
    scale=1 / 255,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    interpolation="bilinear",
)


class Sam2Segmenter:
    """Weights are a folder or hub id with encoder.onnx and decoder.onnx, or "folder#encoder,decoder"."""

    def __init__(self, spec: ModelSpec) -> None:
        refuse_settings(spec, "segmenter")
        self._weights = spec.weights or DEFAULT_WEIGHTS
        encoder, decoder = files_of(spec, DEFAULT_WEIGHTS, FILES)
        image = {"image": Port((1, 3, _SIDE, _SIDE))}
        self._encoder = BoundModel(encoder, spec.family, image, _FEATURES)
        self._decoder = BoundModel(decoder, spec.family, _FEATURES | _PROMPT, _ANSWER)

    def open(self, image: Image.Image) -> Sam2Session:
        pixels = model_input([image], _PREPROCESSING)
        features = self._encoder.run({"image": pixels}, "1 image")
        return Sam2Session(self._decoder, features, image.size, self._weights)


class Sam2Session:
    """One photo and its features."""

    def __init__(
        self, decoder: BoundModel, features: dict[str, NDArray[Any]], size: tuple[int, int], weights: str
    ) -> None:
        self._decoder, self._features = decoder, features
        self._size, self._weights = size, weights

    def candidates(self, cue: Cue) -> Candidates:
        points, labels = self._points(cue)
        if cue.logits is not None and cue.logits.shape != (_GRID, _GRID):
            raise ModelError(f"an earlier mask must be ({_GRID}, {_GRID}) logits, got {cue.logits.shape}")
        earlier = np.zeros((_GRID, _GRID), np.float32) if cue.logits is None else cue.logits
        answer = self._decoder.run(
            self._features
            | {
                "point_coords": points[None],
                "point_labels": labels[None],
                "mask_input": np.asarray(earlier, np.float32)[None, None],
                "has_mask_input": np.asarray([cue.logits is not None], np.float32),
            },
            "1 prompt",
        )
        return Candidates(answer["masks"][0], answer["iou_predictions"][0])

    def mask(self, logits: FloatArray) -> BoolArray:
        """The sign after upsampling: to threshold first would give edges as coarse as the grid."""
        with running(self._weights, f"a mask of {self._size[0]} x {self._size[1]} px"):
            return np.asarray((upsampled(torch.tensor(logits), self._size) > 0).numpy(), bool)

    def _points(self, cue: Cue) -> tuple[FloatArray, FloatArray]:
        """Coordinates (n, 2) in the stretched input, and labels (n,); a box is two points and comes first."""
        corners = np.asarray(cue.box or (), np.float32).reshape(-1, 2)
        scale = _SIDE / np.asarray(self._size, np.float32)
        points = np.concatenate([corners, cue.points]) * scale
        labels = [
            *([_UPPER_LEFT, _LOWER_RIGHT] if cue.box else []),
            *np.where(cue.positive, _INSIDE, _OUTSIDE),
        ]
        return np.asarray(points, np.float32), np.asarray(labels, np.float32)
