"""What the rest of the package may ask of a model that finds masks. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, cast

import numpy as np
from PIL import Image

from lmm_classifier.errors import LmmClassifierError, ModelError
from lmm_classifier.models.loading import open_model
from lmm_classifier.models.segmentation.point_prompts import BoxFormat, Cue, Point, XywhOrXyxy, make_prompt
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.types import BoolArray, FloatArray

_T = TypeVar("_T")
_STABILITY_OFFSET = 1.0  # stability_score_offset of SAM 2's automatic_mask_generator.py


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Answers to one prompt.

    Attributes:
        logits: float32 (m, h, w) with h and w the model's own; positive inside.
        scores: float32 (m,), how good the model thinks each is, usually in [0, 1].
    """

    logits: FloatArray
    scores: FloatArray


class PromptSession(Protocol):
    """One photo, seen by a model: it may be asked many times."""

    def candidates(self, cue: Cue) -> Candidates:
        """Find what a prompt means, m >= 1 times.

        Raises:
            ModelError: the model failed.
        """
        ...

    def mask(self, logits: FloatArray) -> BoolArray:
        """One of the candidates' logits (h, w) as a mask of the whole photo."""
        ...


class PromptedSegmenter(Protocol):
    """A model that cuts out what one points at. It is constructed from a ModelSpec."""

    def open(self, image: Image.Image) -> PromptSession:
        """Look at an RGB image of any size, once for all prompts about it.

        Raises:
            ModelError: the model failed.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """What was cut out.

    Attributes:
        mask: bool (h, w) of the whole photo.
        score: the model's guess of the intersection over union with what was meant; it may exceed 1.
        logits: float32 (h', w') as the model gave them: a later prompt may start from here.
    """

    mask: BoolArray
    score: float
    logits: FloatArray

    @property
    def stability(self) -> float:
        """How little the mask depends on where its edge is drawn, in [0, 1]; 0 where nothing is inside.

        Intersection over union of the masks cut _STABILITY_OFFSET above and below 0, as SAM computes it.
        """
        union = int((self.logits > -_STABILITY_OFFSET).sum())
        return int((self.logits > _STABILITY_OFFSET).sum()) / union if union else 0.0


class PromptedPhoto:
    """A photo that is encoded, to be asked as often as one likes. `open_photo` makes one."""

    def __init__(self, family: str, session: PromptSession, size: tuple[int, int]) -> None:
        self._family, self._session, self._size = family, session, size

    def masks(
        self,
        *,
        point: Point | None = None,
        points: Sequence[Point] = (),
        negative_points: Sequence[Point] = (),
        box: XywhOrXyxy | None = None,
        box_format: BoxFormat = "xywh",
        previous: Mask | None = None,
        multimask: bool = False,
        min_score: float = 0.0,
    ) -> list[Mask]:
        """Cut out what a point, several, a box, or both mean; without any, what is in the centre.

        Args:
            point: (x, y) px, in what is meant.
            points: several.
            negative_points: in what is not meant.
            box: around it: (x, y, width, height) px.
            box_format: "xyxy" if the box is (x0, y0, x1, y1).
            previous: an answer to go on from.
            multimask: all that may be meant, the best first, instead of the best.
            min_score: leave out what scores less.

        Raises:
            ConfigError: a point outside the photo, an empty box, or no point or box beside `previous`.
            ModelError: the model failed.
        """
        both = (*([point] if point is not None else []), *points)
        prompt = make_prompt(points=both, negative_points=negative_points, box=box, box_format=box_format)
        cue = prompt.cue((0, 0, *self._size), previous.logits if previous else None)
        return self.ask(cue, multimask, min_score)

    def ask(self, cue: Cue, multimask: bool = False, min_score: float = 0.0) -> list[Mask]:
        """`masks`, of a prompt that was made before.

        Raises:
            ModelError: the model failed or gave something else than promised.
        """
        found = _answer(self._family, lambda: self._session.candidates(cue))
        logits, scores = found.logits, np.asarray(found.scores)
        if logits.ndim != 3 or not len(logits) or scores.shape != (len(logits),) or np.isnan(scores).any():
            raise ModelError(
                f"segmenter {self._family!r} must give logits (m, h, w) and m scores, m >= 1, got "
                f"{logits.shape} and {scores.shape}"
            )
        best_first = np.argsort(-scores, kind="stable").tolist()  # of equals, the first
        chosen = best_first if multimask else best_first[:1]
        return [self._mask(logits[i], float(scores[i])) for i in chosen if scores[i] >= min_score]

    def _mask(self, logits: FloatArray, score: float) -> Mask:
        mask = _answer(self._family, lambda: self._session.mask(logits))
        _refuse_no_mask(f"segmenter {self._family!r}", mask, self._size)
        return Mask(mask, score, logits)


def open_photo(spec: ModelSpec, image: Image.Image) -> PromptedPhoto:
    """Encode an RGB image with the segmenter of this spec, to ask for masks.

    Raises:
        ConfigError: unknown family.
        ModelError: it cannot be opened, or failed.
    """
    segmenter = load_segmenter(spec)
    return PromptedPhoto(spec.family, _answer(spec.family, lambda: segmenter.open(image)), image.size)


def load_segmenter(spec: ModelSpec) -> PromptedSegmenter:
    """The one segmenter of this spec in the process, opened on first use.

    Raises:
        ConfigError: unknown family.
        ModelError: it cannot be opened.
    """
    return cast("PromptedSegmenter", open_model("segmenter", spec))


@dataclass(frozen=True, slots=True, eq=False)
class PanopticSegment:
    """A thing, or all of a kind of stuff.

    Attributes:
        mask: bool (h, w) of the whole image, at least one pixel.
        label: what it is.
        score: confidence in [0, 1].
        is_thing: whether it is one of several that can be counted, or stuff such as sky; None: not known.
    """

    mask: BoolArray
    label: str
    score: float
    is_thing: bool | None = None


class PanopticSegmenter(Protocol):
    """A model that divides images up. It is constructed from a ModelSpec."""

    def segment(
        self, images: Sequence[Image.Image], min_score: float, fuse_stuff: bool
    ) -> list[list[PanopticSegment]]:
        """Divide up RGB images of any size.

        Args:
            images: any number.
            min_score: what scores less takes no pixels from others.
            fuse_stuff: give stuff of one label one segment, where the model finds several.

        Returns:
            per image its segments, none of which share a pixel, in any order. They need not cover it.

        Raises:
            ModelError: the model failed.
        """
        ...


def load_panoptic(spec: ModelSpec) -> PanopticSegmenter:
    """The one panoptic segmenter of this spec in the process, opened on first use.

    Raises:
        ConfigError: unknown family.
        ModelError: it cannot be opened.
    """
    return cast("PanopticSegmenter", open_model("panoptic", spec))


def segmented(
    spec: ModelSpec, images: Sequence[Image.Image], min_score: float, fuse_stuff: bool
) -> list[list[PanopticSegment]]:
    """Ask the panoptic segmenter of this spec, and take from it only what its protocol promises.

    Raises:
        ModelError: it cannot be opened, failed, or gave something else.
    """
    model = load_panoptic(spec)
    found = _answer(spec.family, lambda: model.segment(images, min_score, fuse_stuff))
    if len(found) != len(images):
        raise ModelError(f"segmenter {spec.family!r} gave {len(found)} answers for {len(images)} images")
    for image, segments in zip(images, found, strict=True):
        taken = np.zeros(image.size[::-1], bool)
        for segment in segments:
            _refuse_no_mask(f"segmenter {spec.family!r}", segment.mask, image.size)
            if (taken & segment.mask).any() or not segment.mask.any():
                raise ModelError(f"segmenter {spec.family!r} must give masks that do not overlap, none empty")
            if not min_score <= segment.score <= 1:
                raise ModelError(
                    f"segmenter {spec.family!r} gave a score of {segment.score}, outside {min_score} to 1"
                )
            taken |= segment.mask
    return found


def _refuse_no_mask(who: str, mask: BoolArray, size: tuple[int, int]) -> None:
    if mask.shape != size[::-1] or mask.dtype != np.bool_:
        raise ModelError(f"{who} must give a bool mask {size[::-1]}, got {mask.dtype} {mask.shape}")


def _answer(family: str, ask: Callable[[], _T]) -> _T:
    try:
        return ask()
    except LmmClassifierError:
        raise
    except Exception as error:
        raise ModelError(f"segmenter {family!r} failed: {type(error).__name__}: {error}") from error
