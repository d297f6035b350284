"""Pixels of any kind to upright 8-bit RGB: right, or refused with a code, never silently wrong."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from lmm_classifier.errors import ImageError

_OPAQUE_MODES = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr"})
_ALPHA_MODES = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
_UPRIGHT = {  # EXIF orientation -> what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_SAMPLE_FORMAT = 258, 262, 339  # tag numbers of TIFF 6.0


def upright_rgb(image: Image.Image) -> Image.Image:
    """Copy a decoded image to mode RGB, turned upright, on white, with an empty `info`.

    Raises:
        ImageError: `unsupported_pixels` for modes whose range or colour space is not known (I, F, LAB, HSV).
    """
    rgb = _rgb(image)
    method = _UPRIGHT.get(_orientation(image))
    if method is not None:
        rgb = rgb.transpose(method)
    elif rgb is image:
        rgb = image.copy()
    rgb.info = {}  # a second reader must not find the orientation and turn the image again
    return rgb


def as_webp(image: Image.Image, side: int, quality: int) -> bytes:
    """A WebP of an image of mode RGB, which is shrunk in place where it is larger.

    Args:
        image: an upright photo.
        side: most pixels along the longest side.
        quality: of 100.
    """
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality)
    return buffer.getvalue()


def image_from_array(array: NDArray[Any]) -> Image.Image:
    """Make an 8-bit image of an array of shape (h, w), (h, w, 3) or (h, w, 4).

    Args:
        array: bool, uint8 (0..255), uint16 (0..65535) or float (0..1).

    Raises:
        ImageError: `unsupported_pixels` for another shape, dtype or range.
    """
    if array.ndim not in {2, 3} or array.shape[2:] not in {(), (3,), (4,)} or array.size == 0:
        shape = "x".join(map(str, array.shape))
        raise _unsupported(f"an array image has shape (h, w), (h, w, 3) or (h, w, 4), this one {shape}")
    return Image.fromarray(_bytes_of(array))


def mend_header(image: ImageFile) -> None:
    """Correct, before decoding, what Pillow is known to misread; refuse what cannot be corrected.

    Raises:
        ImageError: `unsupported_pixels` for 12-bit, signed, and 16-bit white-is-zero TIFF,
            whose brightness Pillow gets wrong.
    """
    if isinstance(image, PngImageFile):
        _rescale_colour_key(image)
    if isinstance(image, TiffImageFile):
        _refuse_misread_tiff(image)


def _rescale_colour_key(image: PngImageFile) -> None:
    # Pillow compares 8-bit pixels with the transparent colour as the file has it: in 2, 4 or 16 bits.
    key = image.info.get("transparency")
    raw_mode = image.tile[0].args if image.tile else None
    if isinstance(key, int) and raw_mode in {"L;2", "L;4"}:
        image.info["transparency"] = key * (85 if raw_mode == "L;2" else 17)
    if isinstance(key, tuple) and raw_mode == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in key)


def _refuse_misread_tiff(image: TiffImageFile) -> None:
    tags = image.tag_v2
    inverted = tags.get(_TIFF_PHOTOMETRIC) == 0 and image.mode.startswith("I;16")
    if inverted or 12 in tags.get(_TIFF_BITS, ()) or 2 in tags.get(_TIFF_SAMPLE_FORMAT, ()):
        raise _unsupported("12-bit, signed and 16-bit white-is-zero TIFF are not supported; save it as PNG")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - a damaged EXIF block says nothing against the pixels: upright
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in _ALPHA_MODES or (image.mode == "P" and "transparency" in image.info):
        straight = image.convert("LA") if image.mode == "La" else image
        rgba = straight.convert("RGBA")
        return _on_white(rgba, rgba.getchannel("A"))
    if image.mode not in _OPAQUE_MODES and not image.mode.startswith("I;16"):
        raise _unsupported(f"pixels of mode {image.mode} have no agreed range; save as 8-bit RGB")
    opaque = Image.fromarray(_bytes_of(np.asarray(image))) if image.mode.startswith("I;16") else image
    key = image.info.get("transparency")
    if key is None:
        return opaque if opaque.mode == "RGB" else opaque.convert("RGB")
    return _on_white(opaque, _alpha_of_key(image, key))


def _alpha_of_key(image: Image.Image, key: int | tuple[int, ...]) -> Image.Image:
    """Alpha of an image in which one colour, given in the units of its pixels, is transparent."""
    pixels = np.asarray(image.convert("L") if image.mode == "1" else image)
    hit = pixels == np.asarray(key)
    transparent = hit.all(axis=-1) if pixels.ndim == 3 else hit
    return Image.fromarray(np.where(transparent, 0, 255).astype(np.uint8))


def _on_white(image: Image.Image, alpha: Image.Image) -> Image.Image:
    white = Image.new("RGB", image.size, "white")
    white.paste(image.convert("RGB"), mask=alpha)
    return white


def _bytes_of(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale bool, uint8, uint16 or float in [0, 1] to uint8, rounding; the shape stays."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 = 255 * 257
    if values.dtype.kind == "f":
        if not ((values >= 0) & (values <= 1)).all():  # NaN fails too
            raise _unsupported("the values of a float image lie in 0..1; these do not")
        return np.asarray(np.rint(values * 255), dtype=np.uint8)
    raise _unsupported(f"an array image is bool, uint8, uint16 or float, this one {values.dtype.name}")


def _unsupported(reason: str) -> ImageError:
    return ImageError("unsupported_pixels", reason)
