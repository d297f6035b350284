"""How one points at something in a photo. No torch here."""

from __future__ import annotations

from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from lmm_classifier.errors import ConfigError
from lmm_classifier.types import BoolArray, Box, FloatArray
from lmm_classifier.yaml_settings import explain

_Coordinate = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Point = tuple[_Coordinate, _Coordinate]
XywhOrXyxy = tuple[_Coordinate, _Coordinate, _Coordinate, _Coordinate]
BoxFormat = Literal["xywh", "xyxy"]


@plain_dataclass(frozen=True, slots=True, eq=False)
class Cue:
    """A prompt in the pixels of the image that a model sees; something in it says what is meant.

    Attributes:
        points: float32 (n, 2), x and y; n may be 0 where there is a box.
        positive: bool (n,), whether a point is in what is meant.
        box: (x0, y0, x1, y1) inside the image, or None.
        logits: float32 (h', w') of the model's earlier answer to go on from, or None.
    """

    points: FloatArray
    positive: BoolArray
    box: tuple[float, float, float, float] | None = None
    logits: FloatArray | None = None


@dataclass(frozen=True, config={"extra": "forbid"})
class Prompt:
    """Something in a photo, by what is in or around it. Empty, it is what is in the centre.

    Attributes:
        points: (x, y) in it, in pixels of the upright photo, from 0 to below its width and height.
        negative_points: (x, y) not in it.
        box: around it, as `box_format` says; what reaches beyond the photo is cut off.
        box_format: (x, y, width, height) or (x0, y0, x1, y1).
    """

    points: tuple[Point, ...] = ()
    negative_points: tuple[Point, ...] = ()
    box: XywhOrXyxy | None = None
    box_format: BoxFormat = "xywh"

    @model_validator(mode="after")
    def _means_something(self) -> Self:
        if self.negative_points and not self.points and self.box is None:
            raise ValueError("negative_points say what is not meant; add points or a box")
        if self.box is not None:
            x0, y0, x1, y1 = self._corners()
            if x0 >= x1 or y0 >= y1:
                raise ValueError(f"box {list(self.box)} is empty as {self.box_format}")
        return self

    @property
    def is_empty(self) -> bool:
        """Whether it names neither a point nor a box."""
        return not self.points and self.box is None

    def cue(self, view: Box, logits: FloatArray | None = None) -> Cue:
        """The prompt in a part of the photo.

        Args:
            view: the part that the model sees, (x0, y0, x1, y1) px.
            logits: an earlier answer to go on from.

        Raises:
            ConfigError: a point or all of the box is outside, or nothing stands beside the logits.
        """
        left, top, right, bottom = view
        for x, y in (*self.points, *self.negative_points):
            if not (left <= x < right and top <= y < bottom):
                raise ConfigError(f"point ({x:g}, {y:g}) is outside {_named(view)}")
        if logits is not None and self.is_empty:
            raise ConfigError("an earlier mask needs a point or a box beside it")
        points = self.points or (() if self.box else (((left + right) / 2, (top + bottom) / 2),))
        origin = np.asarray([left, top], np.float32)
        return Cue(
            points=np.asarray([*points, *self.negative_points], np.float32).reshape(-1, 2) - origin,
            positive=np.asarray([True] * len(points) + [False] * len(self.negative_points), bool),
            box=None if self.box is None else self._inside(view),
            logits=logits,
        )

    def _corners(self) -> tuple[float, float, float, float]:
        if self.box is None:
            raise AssertionError("there is no box")
        x, y, third, fourth = self.box
        return (x, y, third, fourth) if self.box_format == "xyxy" else (x, y, x + third, y + fourth)

    def _inside(self, view: Box) -> tuple[float, float, float, float]:
        left, top, right, bottom = view
        x0, y0, x1, y1 = self._corners()
        x0, x1 = (min(max(x, left), right) - left for x in (x0, x1))
        y0, y1 = (min(max(y, top), bottom) - top for y in (y0, y1))
        if x0 >= x1 or y0 >= y1:
            raise ConfigError(f"box {list(self.box or ())} ({self.box_format}) is outside {_named(view)}")
        return x0, y0, x1, y1


def make_prompt(**options: Any) -> Prompt:
    """A prompt from Python.

    Raises:
        ConfigError: an option is wrong; one line says which.
    """
    try:
        return TypeAdapter(Prompt).validate_python(options)
    except ValidationError as error:
        raise ConfigError(explain(error, Prompt)) from error


def _named(view: Box) -> str:
    return f"what is looked at, ({', '.join(map(str, view))})"
