"""Deterministic stand-ins that ship with the package: for tests, dry runs and plug-in authors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from PIL import Image, ImageColor

from lmm_classifier.errors import ModelError
from lmm_classifier.models.base import Question
from lmm_classifier.models.detection import Detections
from lmm_classifier.models.runtime.options import refuse_untaken
from lmm_classifier.models.segmentation.base import Candidates, PanopticSegment
from lmm_classifier.models.segmentation.point_prompts import Cue
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.types import BoolArray, Box, EncoderContract, FloatArray

_GRID = 4
_MID_GREY = 128
_HUES = ("red, crimson", "green", "blue")
_SIMILAR = 32
_FAILS = "fails"
_GREY = "gray"


class FakeEncoder:
    """Mean colours on a 4 x 4 grid: similar pictures get similar vectors, d = 48.

    A text is the plain picture of the last CSS colour it names, or grey.
    """

    input_size: ClassVar = None  # the mean of every pixel

    def __init__(self, spec: ModelSpec) -> None:
        refuse_untaken(spec)
        self._weights = spec.weights

    @property
    def contract(self) -> EncoderContract:
        return EncoderContract(
            "fake", self._weights, "", "", f"{_GRID}x{_GRID} box", 3 * _GRID * _GRID, "float32"
        )

    def encode(self, images: Sequence[Image.Image]) -> FloatArray:
        flat = self.encode_raw(images)
        return np.asarray(flat / np.linalg.norm(flat, axis=1, keepdims=True), np.float32)

    def encode_raw(self, images: Sequence[Image.Image]) -> FloatArray:
        grids = [
            np.asarray(image.resize((_GRID, _GRID), Image.Resampling.BOX), np.float32) for image in images
        ]
        # black has a direction too
        return np.asarray(np.asarray(grids, np.float32).reshape(len(images), 3 * _GRID * _GRID) + 1)

    def encode_text(self, texts: Sequence[str]) -> FloatArray:
        named = [[w for w in re.findall("[a-z]+", t.lower()) if w in ImageColor.colormap] for t in texts]
        colours = [words[-1] if words else _GREY for words in named]
        return self.encode([Image.new("RGB", (_GRID, _GRID), colour) for colour in colours])


class FakeSegmenter:
    """Cuts out the pixels about as bright as the first point or the centre of the box: score 1."""

    def __init__(self, spec: ModelSpec) -> None:
        refuse_untaken(spec)

    def open(self, image: Image.Image) -> FakeSession:
        return FakeSession(np.asarray(image.convert("L"), np.float32))


class FakeSession:
    """A photo as its brightness, float32 (h, w)."""

    def __init__(self, brightness: FloatArray) -> None:
        self._brightness = brightness

    def candidates(self, cue: Cue) -> Candidates:
        x0, y0, x1, y1 = cue.box or (0, 0, *self._brightness.shape[::-1])
        x, y = cue.points[0] if len(cue.points) else ((x0 + x1) / 2, (y0 + y1) / 2)
        logits = np.full_like(self._brightness, -1)
        part = slice(int(y0), int(np.ceil(y1))), slice(int(x0), int(np.ceil(x1)))
        logits[part] = _SIMILAR - np.abs(self._brightness[part] - self._brightness[int(y), int(x)])
        return Candidates(logits[None], np.ones(1, np.float32))

    def mask(self, logits: FloatArray) -> BoolArray:
        return logits > 0


class FakePanoptic:
    """Divides an image into "bright", a thing, and "dark", stuff, at mid-grey: score 1."""

    def __init__(self, spec: ModelSpec) -> None:
        refuse_untaken(spec)

    def segment(
        self,
        images: Sequence[Image.Image],
        min_score: float,  # noqa: ARG002
        fuse_stuff: bool,  # noqa: ARG002
    ) -> list[list[PanopticSegment]]:
        bright = [np.asarray(image.convert("L")) > _MID_GREY for image in images]
        parts = [((mask, "bright", True), (~mask, "dark", False)) for mask in bright]
        return [
            [PanopticSegment(m, label, 1.0, thing) for m, label, thing in part if m.any()] for part in parts
        ]


class FakeDetector:
    """Finds the box around the pixels brighter than mid-grey, as `weights` or "person": score 1."""

    min_score: ClassVar[float] = 0.5

    def __init__(self, spec: ModelSpec) -> None:
        refuse_untaken(spec)
        self._label = spec.weights or "person"

    def detect(self, images: Sequence[Image.Image]) -> list[Detections]:
        if self._label == _FAILS:
            raise ModelError("the fake detector was told to fail")
        boxes = [
            image.convert("L").point(lambda value: 255 * (value > _MID_GREY)).getbbox() for image in images
        ]
        return [self._found(box) for box in boxes]

    def _found(self, box: Box | None) -> Detections:
        n = 0 if box is None else 1
        return Detections(
            np.asarray([box] if box else [], np.float32).reshape(n, 4),
            np.ones(n, np.float32),
            (self._label,) * n,
        )


class FakeChooser:
    """Prefers the option that `weights` names, else the alphabetically first; `weights: fails` raises."""

    def __init__(self, spec: ModelSpec) -> None:
        refuse_untaken(spec)
        self._preferred = spec.weights

    def log_likelihoods(self, questions: Sequence[Question], batch_size: int) -> list[FloatArray]:  # noqa: ARG002
        if self._preferred == _FAILS:
            raise ModelError("the fake chooser was told to fail")
        return [self._rate(question.options) for question in questions]

    def _rate(self, options: tuple[str, ...]) -> FloatArray:
        chosen = self._preferred if self._preferred in options else min(options)
        return np.asarray([-0.1 if option == chosen else -3.0 for option in options], np.float32)


class FakeClassifier:
    """Tells red from green from blue by their share of the light; `weights: fails` raises."""

    names: ClassVar[tuple[str, ...]] = _HUES

    def __init__(self, spec: ModelSpec) -> None:
        refuse_untaken(spec)
        self._fails = spec.weights == _FAILS

    def probabilities(self, images: Sequence[Image.Image]) -> FloatArray:
        if self._fails:
            raise ModelError("the fake classifier was told to fail")
        means = [
            np.asarray(image, np.float64).mean(axis=(0, 1)) + 1 for image in images
        ]  # black is a third each
        rows = np.asarray(means).reshape(len(images), len(_HUES))
        return np.asarray(rows / rows.sum(axis=1, keepdims=True), np.float32)


class FakeCaptioner:
    """Tells the size of the picture after the prompt, a word per token; `weights: fails` raises."""

    def __init__(self, spec: ModelSpec) -> None:
        refuse_untaken(spec)
        self._fails = spec.weights == _FAILS

    def captions(self, images: Sequence[Image.Image], prompt: str | None, max_length: int) -> list[str]:
        if self._fails:
            raise ModelError("the fake captioner was told to fail")
        start = prompt or "a picture of"
        return [
            f"{start} {' '.join(f'{image.width} by {image.height} pixels'.split()[:max_length])}"
            for image in images
        ]
