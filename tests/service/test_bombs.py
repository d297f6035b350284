"""Pictures that are small as files and large in memory, against the command itself."""

from __future__ import annotations

import struct
import time
import zlib

import pytest
from PIL import Image

from served import Child, Served, encoded
from synthetic import COLOURS, picture


def gif(width: int, height: int, frames: int = 1) -> bytes:
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\x00"
    screen = b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\x00\x00" + bytes(6)
    return screen + frame * frames + b";"


def png(width: int, height: int, *chunks: tuple[bytes, bytes], depth: int = 1) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    body = b"".join(chunk(*each) for each in (*chunks, (b"IEND", b"")))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body


def rows(width: int, height: int) -> bytes:
    return zlib.compress(bytes((width + 7) // 8 + 1) * height, 9)


GIF_HEAD = b"GIF89a" + struct.pack("<HH", 8, 8) + bytes(3)
ZEROS = zlib.compress(bytes(200 * 2**20), 9)
TALL = Image.new("1", (1, 30_001))
SOUND = encoded(picture(COLOURS["red"]), "JPEG")
BOMBS = {
    "a million empty markers": SOUND[:2] + b"\xff\xe5\0\2" * 4_000_000 + SOUND[2:],
    "fill bytes before a marker": SOUND[:2] + b"\xff" * 20_000_000 + SOUND[2:],
    "a million empty chunks": png(8, 8, *[(b"abCd", b"")] * 300_000, (b"IDAT", rows(8, 8))),
    "a million comments": GIF_HEAD + b"\x21\xfe\1a\0" * 4_000_000 + gif(8, 8)[13:],
    "4.4 gigapixels in 44 bytes": gif(65_535, 65_535),
    "50,000 x 50,000 PNG": png(50_000, 50_000, (b"IDAT", rows(50_000, 100))),
    "the same, whole": png(50_000, 50_000, (b"IDAT", rows(50_000, 50_000))),
    "zTXt of 200 MB": png(8, 8, (b"zTXt", b"a\0\0" + ZEROS), (b"IDAT", rows(8, 8))),
    "iCCP of 200 MB": png(8, 8, (b"iCCP", b"a\0\0" + ZEROS), (b"IDAT", rows(8, 8))),
    "iTXt of 200 MB": png(8, 8, (b"iTXt", b"a\0\1\0\0\0" + ZEROS), (b"IDAT", rows(8, 8))),
    "more rows than it says": png(8, 8, (b"IDAT", ZEROS)),
    "100,000 frames": gif(300, 300, 100_000),
    "a side too long": encoded(TALL, "PNG"),
    "51 megapixels": encoded(Image.new("1", (7200, 7200)), "TIFF", compression="group4"),
    "a BMP that lies": b"BM"
    + struct.pack("<IHHIIiiHHIIiiII", 60, 0, 0, 54, 40, 2**30, 2**30, 1, 24, 0, 0, 0, 0, 0, 0),
    "a WebP that lies": b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0\x2f\xff\xff\xff\x0f" + bytes(9),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_and_cost_little_memory(name: str, started: tuple[Served, Child]) -> None:
    service, process = started
    before = process.resident
    process.forget_peak()
    reply = service.upload(BOMBS[name], "embed_siglip", name=f"{name}.png")
    assert process.peak - before <= 200
    # what is said beside the picture is not read, nor what comes after its first frame
    assert (
        reply.status in (200, 400)
        if name.endswith((" MB", "frames", "it says"))
        else reply.status in (400, 413)
    )


@pytest.mark.timing
@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_within_a_second(name: str, started: tuple[Served, Child]) -> None:
    service, _ = started
    begun = time.monotonic()
    service.upload(BOMBS[name], "embed_siglip", name=f"{name}.png")
    assert time.monotonic() - begun <= 1


def test_at_least_twelve_kinds_of_bombs_are_tried() -> None:
    assert len(BOMBS) >= 12
