"""A second PNG decoder, written from the specification (ISO/IEC 15948) and sharing no code with Pillow."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def on_white(data: bytes) -> np.ndarray:
    """Decode a PNG: float (h, w, 3) in 0..255, composited on white, gamma and colour profile ignored."""
    chunks = list(_chunks(data))
    parts = dict(chunks)
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", parts[b"IHDR"])
    raw = zlib.decompress(b"".join(body for name, body in chunks if name == b"IDAT"))
    samples = np.zeros((height, width, CHANNELS[colour]), np.int64)
    offset = 0
    for x0, y0, dx, dy in ADAM7 if interlaced else ((0, 0, 1, 1),):
        shape = (-(-(height - y0) // dy), -(-(width - x0) // dx))
        if min(shape) > 0:
            values, offset = _pass(raw, offset, shape, depth, CHANNELS[colour])
            samples[y0::dy, x0::dx] = values
    rgb, alpha = _colours(samples, depth, colour, parts)
    return rgb * alpha + 255 * (1 - alpha)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    offset = 8
    while offset < len(data):
        (length,) = struct.unpack_from(">I", data, offset)
        yield data[offset + 4 : offset + 8], data[offset + 8 : offset + 8 + length]
        offset += length + 12


def _pass(raw: bytes, offset: int, shape: tuple[int, int], depth: int, channels: int):
    height, width = shape
    stride, step = -(-width * channels * depth // 8), max(1, channels * depth // 8)
    above, rows = bytearray(stride), []
    for _ in range(height):
        row = bytearray(raw[offset + 1 : offset + 1 + stride])
        _unfilter(raw[offset], row, above, step)
        rows.append(_samples(row, depth)[: width * channels])
        above, offset = row, offset + 1 + stride
    return np.array(rows).reshape(height, width, channels), offset


def _unfilter(kind: int, row: bytearray, above: bytearray, step: int) -> None:
    for i in range(len(row)):
        a, b = (row[i - step] if i >= step else 0), above[i]
        c = above[i - step] if i >= step else 0
        near = min((a, b, c), key=lambda value: abs(a + b - c - value))  # ties: a, then b, then c
        row[i] = (row[i] + (0, a, b, (a + b) // 2, near)[kind]) % 256


def _samples(row: bytearray, depth: int) -> np.ndarray:
    values = np.frombuffer(bytes(row), np.uint8)
    if depth == 16:
        return values.reshape(-1, 2).astype(np.int64) @ (256, 1)
    bits = np.unpackbits(values).reshape(-1, depth).astype(np.int64)
    return bits @ (1 << np.arange(depth)[::-1])


def _colours(samples: np.ndarray, depth: int, colour: int, parts: dict[bytes, bytes]):
    peak, key = 2**depth - 1, parts.get(b"tRNS")
    if colour == 3:
        palette = np.frombuffer(parts[b"PLTE"], np.uint8).reshape(-1, 3).astype(float)
        alphas = np.full(len(palette), 255.0)
        alphas[: len(key or b"")] = np.frombuffer(key or b"", np.uint8)
        return palette[samples[..., 0]], alphas[samples] / 255
    if colour in {4, 6}:
        return np.broadcast_to(samples[..., :-1] * 255 / peak, (*samples.shape[:2], 3)), samples[
            ..., -1:
        ] / peak
    opaque = np.ones((*samples.shape[:2], 1))
    if key is not None:
        opaque = (samples != np.frombuffer(key, ">u2")).any(axis=-1, keepdims=True).astype(float)
    return np.broadcast_to(samples * 255 / peak, (*samples.shape[:2], 3)), opaque
