"""Masks as others want them: COCO run lengths, PNG, polygons, cut-outs and overlays.

A mask is bool (h, w), True where the thing is. Pixel (x, y) covers the square from x to x + 1 and from
y to y + 1, as boxes do.
"""

from __future__ import annotations

import colorsys
import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pycocotools import mask as coco

from lmm_classifier.corpus.images import DEFAULT_LIMITS, open_image
from lmm_classifier.errors import ConfigError
from lmm_classifier.types import BoolArray, Box, Region

_Polygon = npt.NDArray[np.float64]


def tight_box(mask: BoolArray) -> Box | None:
    """The smallest box around a mask, (x0, y0, x1, y1) px, half-open; None of an empty one."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def placed(mask: BoolArray, view: Box, size: tuple[int, int]) -> BoolArray:
    """The mask of a part of a photo as one of the whole photo.

    Args:
        mask: bool (h, w) of the part.
        view: the part, (x0, y0, x1, y1) px.
        size: width and height of the photo.
    """
    if view == (0, 0, *size):
        return mask
    whole = np.zeros(size[::-1], bool)
    whole[view[1] : view[3], view[0] : view[2]] = mask
    return whole


def to_rle(mask: BoolArray) -> dict[str, Any]:
    """COCO's compressed run lengths: `size` [h, w] and `counts` as ASCII text, ready for JSON."""
    encoded = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def from_rle(rle: Mapping[str, Any]) -> BoolArray:
    """The mask of COCO run lengths, compressed (text or bytes) or not (a list of numbers).

    pycocotools is not asked: over wrong run lengths it returns what lies in memory, or ends the process.

    Raises:
        ConfigError: no run lengths, ones that do not add up to the size, or more pixels than photos have.
    """
    try:
        (height, width), counts = rle["size"], rle["counts"]
        runs = counts if isinstance(counts, list) else _uncompressed(counts)
        if min(height, width, *runs) < 0 or height * width != sum(runs):
            raise ValueError(f"the counts do not add up to {height} x {width}")
        if height * width > DEFAULT_LIMITS.max_pixels:
            raise ValueError(f"{height} x {width} are too many pixels")
        values = np.arange(len(runs)) % 2 == 1
        return np.ascontiguousarray(np.repeat(values, runs).reshape(width, height).T)  # column by column
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"these are no COCO run lengths with size and counts: {error}") from error


def _uncompressed(counts: str | bytes) -> list[int]:
    """The numbers of COCO's text: five bits a character, lowest first; differences to the last but one."""
    runs: list[int] = []
    value = shift = 0
    for character in counts.encode() if isinstance(counts, str) else counts:
        bits = character - 48
        if not 0 <= bits < 64:
            raise ValueError("the counts hold characters that have no meaning")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:  # the last character of a number; its highest bit is the sign
            value -= (bits & 16) << (shift - 4)
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("the counts end inside a number")
    return runs


def to_png(mask: BoolArray) -> bytes:
    """A grey PNG file with 255 where the mask is True and 0 elsewhere."""
    buffer = io.BytesIO()
    Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0))).save(buffer, "PNG")
    return buffer.getvalue()


def from_png(data: bytes) -> BoolArray:
    """The mask of a picture of pure black and white.

    Raises:
        ConfigError: it has other colours.
        ImageError: it cannot be read.
    """
    pixels = np.asarray(open_image(data))
    white = (pixels == 255).all(axis=2)
    if not (white | (pixels == 0).all(axis=2)).all():
        raise ConfigError("a mask has no colours but 0 and 255")
    return np.asarray(white, bool)


def to_polygons(mask: BoolArray) -> tuple[_Polygon, ...]:
    """The outlines of a mask, each float64 (n, 2), x and y in px, closed: the first point is the last.

    A point is inside where an odd number of them encloses it: the outline of a hole is one too. They pass
    half-way between the centres of pixels inside and outside, so `from_polygons` gives the same mask.
    """
    from skimage.measure import find_contours  # takes half a second to import

    outlines = find_contours(np.pad(mask, 1).astype(np.float64), 0.5)
    return tuple(outline[:, ::-1] - 0.5 for outline in outlines)  # padded by 1, centres at + 0.5


def from_polygons(polygons: Sequence[Any], size: tuple[int, int]) -> BoolArray:
    """The pixels whose centres are inside an odd number of polygons.

    Args:
        polygons: each (n, 2) of x and y in px.
        size: width and height of the photo.
    """
    from skimage.draw import polygon2mask

    inside = np.zeros(size[::-1], bool)
    for polygon in polygons:
        inside ^= polygon2mask(size[::-1], np.asarray(polygon, np.float64)[:, ::-1] - 0.5)
    return inside


def apply_mask(image: Image.Image, mask: BoolArray) -> Image.Image:
    """The photo as RGBA, transparent outside the mask; what was transparent stays so.

    Raises:
        ConfigError: photo and mask differ in size.
    """
    _refuse_other_size(image, mask)
    cut = image.convert("RGBA")
    alpha = np.where(mask, np.asarray(cut.getchannel("A")), np.uint8(0))
    cut.putalpha(Image.fromarray(alpha))
    return cut


def compose_overlay(image: Image.Image, regions: Sequence[Region], alpha: float = 0.5) -> Image.Image:
    """The photo as RGB with each region's mask tinted in the colour of its kind; later ones lie on top.

    Regions without a mask, such as the whole image, are not drawn.

    Args:
        image: what the masks belong to.
        regions: any number.
        alpha: share of the tint, from 0 (not seen) to 1 (opaque).

    Raises:
        ConfigError: a mask has another size than the photo, or alpha is out of range.
    """
    if not 0 <= alpha <= 1:
        raise ConfigError(f"alpha must be between 0 and 1, got {alpha}")
    pixels = np.array(image.convert("RGB"))
    for region in regions:
        if region.mask is not None:
            _refuse_other_size(image, region.mask)
            tint = alpha * np.asarray(label_colour(region.kind), np.float32)
            mixed = (1 - alpha) * pixels[region.mask] + tint
            pixels[region.mask] = np.rint(mixed).astype(np.uint8)
    return Image.fromarray(pixels)


def label_colour(label: str) -> tuple[int, int, int]:
    """The RGB colour of a label, always the same and whatever other labels there are."""
    digest = hashlib.sha256(label.encode()).digest()
    hue, saturation, value = int.from_bytes(digest[:2]) / 65536, digest[2] / 255, digest[3] / 255
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.6 + 0.4 * saturation, 0.7 + 0.3 * value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _refuse_other_size(image: Image.Image, mask: BoolArray) -> None:
    if mask.shape != image.size[::-1]:
        shape = " x ".join(map(str, mask.shape[::-1]))
        raise ConfigError(f"the mask is of {shape} px, the photo of {image.width} x {image.height}")
