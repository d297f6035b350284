"""Small images and headers made on the spot, for the tests of this folder."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from lmm_classifier.corpus.images import open_image
from lmm_classifier.errors import ImageError

SIX_FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]


def encoded(image: Image.Image, image_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def pixels(source, **options) -> np.ndarray:
    return np.asarray(open_image(source, **options)).astype(int)


def code_of(source, **options) -> str:
    with pytest.raises(ImageError) as caught:
        open_image(source, **options)
    return caught.value.code


def noise(height: int = 6, width: int = 9) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises RGB pixels of this size and has none."""
    return _png(struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), {b"IDAT": b""})


def png_row(depth: int, colour_type: int, row: bytes, width: int, colour_key: bytes) -> bytes:
    """A PNG of one row in which one colour is transparent, written by hand."""
    chunks = {b"tRNS": colour_key, b"IDAT": zlib.compress(b"\0" + row), b"IEND": b""}
    return _png(struct.pack(">IIBBBBB", width, 1, depth, colour_type, 0, 0, 0), chunks)


def _png(header: bytes, chunks: dict[bytes, bytes]) -> bytes:
    parts = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in {b"IHDR": header, **chunks}.items()
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
