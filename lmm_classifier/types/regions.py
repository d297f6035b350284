"""Parts of an image, and the one that the steps look at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from lmm_classifier.types.arrays import BoolArray

Box = tuple[int, int, int, int]
_PADDING = (124, 116, 104)
"""Mean colour of ImageNet (x 255 of .485, .456, .406): nearly zero after a model's normalisation."""


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """A part of one image.

    Attributes:
        box: (x0, y0, x1, y1) in pixels, half-open, origin at the top left.
        kind: what it shows: "image" for the whole frame, else "person", "face", ...
        source: name of the step that proposed it; "image" for the whole frame.
        score: detector confidence in [0, 1].
        mask: bool (h, w) of the whole image, read-only, or None for the full box.
    """

    box: Box
    kind: str = "image"
    source: str = "image"
    score: float = 1.0
    mask: BoolArray | None = None

    def __post_init__(self) -> None:
        if self.mask is not None:
            if self.mask.ndim != 2 or self.mask.dtype != np.bool_:
                raise ValueError(f"mask must be bool (h, w), got {self.mask.dtype} {self.mask.shape}")
            self.mask.setflags(write=False)


@dataclass(frozen=True, slots=True)
class Target:
    """The one region that the following steps look at, and how it came to be that one.

    Attributes:
        wanted: "whole_image", or the kind of region that was asked for, such as "person".
        row: its row among the sample's regions.
        box: what is cut out, (x0, y0, x1, y1) px: the region's box, grown where padding was asked for.
        square: whether the cut is padded to a square, so that a model that crops the centre sees it all.
        fallback: why it is the whole image although another was wanted; None where it is as wanted.
    """

    wanted: str
    row: int
    box: Box
    square: bool
    fallback: str | None = None

    def cut(self, image: Image.Image) -> Image.Image:
        """The pixels of the box."""
        crop = image if self.box == (0, 0, *image.size) else image.crop(self.box)
        if not self.square or crop.width == crop.height:
            return crop
        side = max(crop.size)
        padded = Image.new("RGB", (side, side), _PADDING)
        padded.paste(crop, ((side - crop.width) // 2, (side - crop.height) // 2))
        return padded


@dataclass(frozen=True, slots=True)
class Skip:
    """Why the following steps leave a sample alone: something they need is not in the photo.

    Attributes:
        code: for programs, such as "no_person" or "no_face".
        reason: one sentence for people.
    """

    code: str
    reason: str
