"""Limits the number of header segments before the pixels of a photo: a decoder reads them one by one."""

from __future__ import annotations

from lmm_classifier.errors import ImageError

_MOST_PARTS = 4096
"""Markers of a JPEG, chunks of a PNG, sub-blocks of a GIF before the picture. Colour profiles take 255 at
most, cameras a few dozen."""
_START_OF_SCAN, _EXTENSION = 0xDA, 0x21
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a length


def check_header(data: bytes) -> None:
    """Whether the picture of a JPEG, PNG or GIF begins after a number of parts that is not out of all reason.

    Raises:
        ImageError: it does not; one that is damaged is left to its decoder.
    """
    if data.startswith(b"\xff\xd8"):
        parts = _of_jpeg(data)
    elif data.startswith(b"\x89PNG"):
        parts = _of_png(data)
    elif data.startswith(b"GIF8"):
        parts = _of_gif(data)
    else:
        return
    if parts > _MOST_PARTS:
        raise ImageError("corrupt", f"more than {_MOST_PARTS} parts come before the picture")


def _of_jpeg(data: bytes) -> int:
    place, parts = 2, 0
    while parts <= _MOST_PARTS and place + 4 <= len(data):
        parts += 1
        if data[place] != 0xFF or data[place + 1] == 0xFF:  # a decoder skips what is no marker
            place = data.find(b"\xff", place + 1)
            if place < 0:
                break
            continue
        marker = data[place + 1]
        if marker == _START_OF_SCAN:
            break
        place += 2 if marker in _ALONE else 2 + int.from_bytes(data[place + 2 : place + 4])
    return parts


def _of_png(data: bytes) -> int:
    place, parts = 8, 0
    while parts <= _MOST_PARTS and place + 8 <= len(data) and data[place + 4 : place + 8] != b"IDAT":
        parts += 1
        place += 12 + int.from_bytes(data[place : place + 4])
    return parts


def _of_gif(data: bytes) -> int:
    place, parts = 13 + (3 << (data[10] & 7) + 1 if len(data) > 10 and data[10] & 0x80 else 0), 0
    while parts <= _MOST_PARTS and place + 2 <= len(data) and data[place] == _EXTENSION:
        place += 2
        while parts <= _MOST_PARTS and place < len(data) and data[place]:
            parts += 1
            place += 1 + data[place]
        place += 1
        parts += 1
    return parts
