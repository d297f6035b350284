"""How many pixels of a photo a Qwen-VL model sees, by Qwen's own rule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

from PIL import Image
from qwen_vl_utils import smart_resize
from qwen_vl_utils.vision_process import MAX_RATIO, to_rgb

from lmm_classifier.errors import ModelError
from lmm_classifier.models.runtime.resizing import MAX_PIXELS
from lmm_classifier.models.spec import ModelSpec

MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
"""Of checkpoints whose photos are prepared like this."""


@dataclass(frozen=True, slots=True)
class PixelBudget:
    """What becomes of the size of a photo: both sides multiples of a patch, the ratio nearly kept.

    Attributes:
        factor: px of the side of the square that one visual token stands for.
        least: pixels; a photo of fewer is enlarged.
        most: pixels; a photo of more is scaled down.
    """

    factor: int
    least: int
    most: int

    @classmethod
    def of(cls, spec: ModelSpec, weights: str, image_processor: Any) -> Self:
        """The budget of a spec; what that leaves open is as its image processor has it, within `MAX_PIXELS`.

        Raises:
            ModelError: a photo could not have a single visual token, or the processor names no limits.
        """
        factor = image_processor.patch_size * image_processor.merge_size
        least, most = (image_processor.size.get(edge) for edge in ("shortest_edge", "longest_edge"))
        if not least or not most:
            raise ModelError(
                f"model {weights!r}: `size` of its image processor must hold shortest_edge and longest_edge, "
                "the pixels of a photo"
            )
        most = min(most, MAX_PIXELS) if spec.max_pixels is None else spec.max_pixels
        if spec.min_pixels is None:
            least = min(least, most)
        else:
            least, most = spec.min_pixels, max(spec.min_pixels, most)
        if most < factor**2:
            raise ModelError(
                f"max_pixels {most} is less than a visual token of {weights!r}, {factor} x {factor} pixels: "
                f"raise it to {factor**2} at least"
            )
        return cls(factor, least, most)

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height in px that the model sees of a photo, which may be of any shape.

        The shorter side of a sliver counts as longer than it is: until the rule of Qwen takes it, and until
        a row of single tokens keeps within the budget.
        """
        thinnest = math.ceil(max(width, height) / min(MAX_RATIO, self.most // self.factor**2))
        wide, high = max(width, thinnest), max(height, thinnest)
        high, wide = smart_resize(high, wide, self.factor, self.least, self.most)
        return max(wide, self.factor), max(high, self.factor)  # rounding may have taken the last token

    def fitted(self, image: Image.Image) -> Image.Image:
        """The photo in RGB and of that size, resized once; one that has it is left alone."""
        size = self.size(*image.size)
        shown: Image.Image = to_rgb(image)
        return shown if shown.size == size else shown.resize(size, Image.Resampling.BICUBIC)
