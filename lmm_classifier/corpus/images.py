"""Photos in: the only file of the project that opens image bytes, and one of its three error seams.

Whatever arrives (path, bytes, PIL image, array) leaves as an upright 8-bit RGB image that is decoded
and detached from its source, or as an `ImageError` with a code from `IMAGE_ERROR_CODES`.
"""

from __future__ import annotations

import errno
import hashlib
import io
import math
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
from numpy.typing import NDArray
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from lmm_classifier.corpus.headers import check_header
from lmm_classifier.corpus.pixels import image_from_array, mend_header, upright_rgb
from lmm_classifier.errors import ImageError

_Buffer = bytes | bytearray | memoryview
ImageSource = str | os.PathLike[str] | _Buffer | Image.Image | NDArray[Any]


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid"))
class ImageLimits:
    """What one image may cost. Each limit is checked before the memory it guards is spent.

    Attributes:
        max_bytes: of the encoded file, upload or buffer.
        max_pixels: width x height in the header (imgproxy allows 50 million, thumbor 75 million).
        max_side: width or height, in pixels.
    """

    max_bytes: pydantic.PositiveInt = 25 * 2**20
    max_pixels: pydantic.PositiveInt = 50_000_000
    max_side: pydantic.PositiveInt = 30_000


DEFAULT_LIMITS = ImageLimits()

_DECODERS: tuple[tuple[re.Pattern[bytes], type[ImageFile]], ...] = (  # by the first bytes of the file
    (re.compile(rb"\xff\xd8\xff"), JpegImageFile),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), PngImageFile),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), WebPImageFile),
    (re.compile(rb"GIF8[79]a"), GifImageFile),
    (re.compile(rb"BM"), BmpImageFile),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), TiffImageFile),
)
_FILTER_LOCK = threading.Lock()
_METADATA_FILTER = ("ignore", None, UserWarning, re.compile(r"PIL\.(Png|Tiff)ImagePlugin"), 0)


@dataclass(frozen=True, slots=True, eq=False)
class LoadedImage:
    """An image and the identity of the exact bytes it was decoded from.

    Attributes:
        image: upright RGB.
        sha256: 64 lower-case hexadecimal digits.
        n_bytes: size of the file, as read.
    """

    image: Image.Image
    sha256: str
    n_bytes: int


def open_image(
    source: ImageSource, *, target_size: int | None = None, limits: ImageLimits = DEFAULT_LIMITS
) -> Image.Image:
    """Open a photo as an upright RGB image.

    Files and bytes may be JPEG, PNG, WebP, GIF, BMP or TIFF, told by their first bytes and never by
    their name. The first frame is used, EXIF orientation is applied, transparency lies on white and
    16-bit greys are scaled. Colour profiles are not applied. The source is never changed.

    Args:
        source: path (a `str` is always a path); encoded bytes; PIL image; or array of shape (h, w),
            (h, w, 3) or (h, w, 4), RGB order, straight alpha, of dtype bool, uint8 (0..255),
            uint16 (0..65535) or float (0..1).
        target_size: in pixels; the caller will scale the short side down to this. A JPEG may then be
            decoded at 1/2, 1/4 or 1/8 size, never with a side below `target_size`.
            The limits hold for the size in the header all the same.
        limits: what the image may cost.

    Returns:
        A new image of mode RGB with an empty `info`, independent of source and file.

    Raises:
        ImageError: the image cannot be read, or is outside the limits.
        TypeError: `source` is none of the above.
        ValueError: `target_size` is not positive.
    """
    if target_size is not None and target_size < 1:
        raise ValueError(f"target_size must be a positive number of pixels, got {target_size}")
    if isinstance(source, str | os.PathLike):
        return load_image_file(source, target_size=target_size, limits=limits).image
    with _image_errors_only():
        if isinstance(source, _Buffer):
            return _decode(source, target_size, limits)
        if isinstance(source, np.ndarray):
            _check_size(source.shape[:2], limits)
            return upright_rgb(image_from_array(source))
        if isinstance(source, Image.Image):
            _check_size(source.size, limits)
            source.load()
            return upright_rgb(source)
    raise TypeError(f"an image is a path, bytes, a PIL image or an array, not {type(source).__name__}")


def size_of_image(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> tuple[int, int]:
    """(width, height) that the header of an encoded photo says; nothing is decoded.

    Raises:
        ImageError: it is no photo, or is outside the limits.
    """
    with _image_errors_only():
        _check_length(len(data), limits)
        _ignore_metadata_warnings()
        size = _open_lazily(data).size
        _check_size(size, limits)
    return size


def load_image_file(
    path: str | os.PathLike[str], *, target_size: int | None = None, limits: ImageLimits = DEFAULT_LIMITS
) -> LoadedImage:
    """Read a file once; return its image and the digest of the very bytes that were decoded.

    Arguments and errors as for `open_image`.
    """
    data = read_image_bytes(path, limits)
    with _image_errors_only():
        return LoadedImage(_decode(data, target_size, limits), hashlib.sha256(data).hexdigest(), len(data))


def read_image_bytes(path: str | os.PathLike[str], limits: ImageLimits = DEFAULT_LIMITS) -> bytes:
    """Read a regular file of at most `limits.max_bytes`; never hangs on a pipe, socket or device.

    Raises:
        ImageError: the file is missing, forbidden, special, empty, too large, or the disk failed.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        _check_file(Path(path).stat(), limits)  # before opening: to open a device is to act on it
        with open(os.open(path, flags), "rb") as file:  # noqa: PTH123 - Path.open takes no descriptor
            _check_file(os.fstat(file.fileno()), limits)  # it may have become a pipe in between
            data = file.read(limits.max_bytes + 1)  # and may be growing
    except OSError as error:
        raise _file_error(error) from error
    except ValueError as error:  # a NUL character or a lone surrogate in the path
        raise ImageError("not_found", "no file can have this name") from error
    _check_length(len(data), limits)
    return data


def type_of_image(data: bytes) -> str:
    """The media type of an encoded photo, such as "image/jpeg", told by its first bytes as `open_image` does.

    Raises:
        ImageError: it is no photo.
    """
    return Image.MIME[str(_decoder_of(data).format)]


def _check_file(info: os.stat_result, limits: ImageLimits) -> None:
    if not stat.S_ISREG(info.st_mode):
        raise ImageError("not_a_file", "this is a folder, pipe, socket or device, not a file")
    _check_length(info.st_size, limits)


def _file_error(error: OSError) -> ImageError:
    if isinstance(error, FileNotFoundError | NotADirectoryError) or error.errno == errno.ELOOP:
        return ImageError("not_found", "there is no such file, or it is a link to nothing")
    if isinstance(error, PermissionError):
        return ImageError("permission_denied", "this user may not read the file")
    if isinstance(error, IsADirectoryError):
        return ImageError("not_a_file", "this is a folder, not a file")
    name = errno.errorcode.get(error.errno or 0, "unknown error")
    return ImageError("io_error", f"the file could not be read ({name})")


@contextmanager
def _image_errors_only() -> Iterator[None]:
    """Turn whatever a decoder raises into an ImageError; KeyboardInterrupt and its like pass."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:  # broken files raise nearly everything: ValueError, KeyError, struct.error...
        raise _decoding_error(error) from error


def _decoding_error(error: Exception) -> ImageError:
    # Pillow has no exception classes for these causes, so its text decides; it is never passed on.
    text = str(error).lower()
    if isinstance(error, MemoryError):
        return ImageError("out_of_memory", "there is not enough memory to decode the image")
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return ImageError("too_many_pixels", "the image is a decompression bomb")
    if isinstance(error, EOFError) or any(word in text for word in ("truncated", "incomplete", "not enough")):
        return ImageError("truncated", "the image data end too early")
    if any(word in text for word in ("unsupported", "cannot handle", "unknown pixel mode")):
        return ImageError("unsupported_pixels", "this variant of the image format is not supported")
    return ImageError("corrupt", "the image data are damaged")


def _decode(data: _Buffer, target_size: int | None, limits: ImageLimits) -> Image.Image:
    _check_length(memoryview(data).nbytes, limits)
    _ignore_metadata_warnings()
    image = _open_lazily(bytes(data))
    _check_size(image.size, limits)
    mend_header(image)
    if target_size is not None:
        image.draft(None, (target_size, target_size))
    image.load()
    return upright_rgb(image)


def _open_lazily(data: bytes) -> ImageFile:
    # Not Image.open: it would warn about sizes by a global setting, and read a phone's JPEG as MPO.
    check_header(data)
    return _decoder_of(data)(io.BytesIO(data))


def _decoder_of(data: bytes) -> type[ImageFile]:
    for magic, decoder in _DECODERS:
        if magic.match(data):
            return decoder
    raise ImageError("unsupported_format", "this is not a JPEG, PNG, WebP, GIF, BMP or TIFF image")


def _check_length(n_bytes: int, limits: ImageLimits) -> None:
    if n_bytes == 0:
        raise ImageError("empty_file", "there is not a single byte")
    if n_bytes > limits.max_bytes:
        raise ImageError("too_many_bytes", f"the encoded image is larger than {limits.max_bytes} bytes")


def _check_size(size: tuple[int, ...], limits: ImageLimits) -> None:
    side, pixels = max(size, default=0), math.prod(size)
    if side > limits.max_side:
        raise ImageError("too_many_pixels", f"a side of {side} pixels exceeds the limit of {limits.max_side}")
    if pixels > limits.max_pixels:
        raise ImageError("too_many_pixels", f"{pixels} pixels exceed the limit of {limits.max_pixels}")


def _ignore_metadata_warnings() -> None:
    """Keep Pillow's remarks on broken tags from becoming output, or errors under `python -W error`.

    A fine photo must not depend on the warning filters. `warnings.catch_warnings` swaps the filters of
    the whole process and is not thread-safe before Python 3.14, so one narrow filter is put in front,
    left there, and put back in front when somebody else has taken the place.
    """
    with _FILTER_LOCK:
        if tuple(warnings.filters[:1]) != (_METADATA_FILTER,):
            warnings.filterwarnings("ignore", category=UserWarning, module=_METADATA_FILTER[3].pattern)
