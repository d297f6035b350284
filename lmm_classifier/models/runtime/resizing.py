"""Photos too thin or too large for a processor, which would refuse them, round a side to 0 px or blow up."""

from __future__ import annotations

import math

from PIL import Image

MAX_PIXELS = 1280 * 28 * 28
"""1,280 visual tokens of Qwen2-VL: the bound that its model card proposes to balance cost and quality. Its
processor's own limit would let a photo of 12 megapixels take 16,000."""
MAX_ASPECT_RATIO = 16
"""A centre crop sees no more of a photo; resized whole, 1 x 2,000 px would become 224 x 448,000."""


def side_of(max_pixels: int) -> int:
    """Px that the shorter side of a photo of at most so many pixels is below."""
    return math.isqrt(max_pixels) + 1


def without_sliver(image: Image.Image) -> Image.Image:
    """Cut the ends off a long and thin image, equally, as a centre crop would after resizing it whole."""
    width, height = image.size
    excess = max(width, height) - MAX_ASPECT_RATIO * min(width, height)
    if excess <= 1:
        return image
    cut = excess // 2
    return image.crop((cut, 0, width - cut, height) if width > height else (0, cut, width, height - cut))


def widened(image: Image.Image, ratio: int) -> Image.Image:
    """Stretch the shorter side of an image longer than `ratio` : 1 until it is not; nothing is cut."""
    least = math.ceil(max(image.size) / ratio)
    if min(image.size) >= least:
        return image
    return image.resize((max(image.width, least), max(image.height, least)))


def shrunk(image: Image.Image, max_pixels: int) -> Image.Image:
    """Scale an image of more than `max_pixels` down to about that many."""
    factor = math.sqrt(image.width * image.height / max_pixels)
    if factor <= 1:
        return image
    return image.resize((max(1, int(image.width / factor)), max(1, int(image.height / factor))))
