from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from specimens import code_of, encoded, noise, pixels, png_header, png_row

from lmm_classifier.corpus.images import ImageLimits, open_image, type_of_image
from lmm_classifier.errors import ImageError


def tiff(bits: int, photometric: int, sample_format: int, data: bytes) -> bytes:
    """A grey TIFF of 2x1 pixels, little-endian, put together by hand."""
    tags = [(256, 2), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, 1)]
    tags += [(279, len(data)), (339, sample_format)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[0, 7, 255]], np.uint8), [[0, 0, 0], [7, 7, 7], [255, 255, 255]]),
        (np.array([[False, True]]), [[0, 0, 0], [255, 255, 255]]),
        (np.array([[0, 257, 32896, 65535]], np.uint16), [[0] * 3, [1] * 3, [128] * 3, [255] * 3]),
        (np.array([[0, 257 * 9]], ">u2"), [[0] * 3, [9] * 3]),
        (np.array([[0.0, 0.5, 1.0]], np.float32), [[0] * 3, [128] * 3, [255] * 3]),
        (np.array([[[1, 2, 3]]], np.uint8), [[1, 2, 3]]),
        (np.array([[[10, 20, 30, 255], [10, 20, 30, 0]]], np.uint8), [[10, 20, 30], [255, 255, 255]]),
        (np.array([[[1.0, 0.0, 0.0, 0.2]]]), [[255, 204, 204]]),
    ],
)
def test_arrays_are_scaled_by_their_dtype(array: np.ndarray, expected: list[list[int]]):
    assert pixels(array).tolist() == [expected]


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4,)),
        np.zeros(()),
        np.zeros((4, 4, 2)),
        np.zeros((2, 4, 4, 3)),
        np.zeros((0, 4)),
        np.zeros((4, 4), np.int32),
        np.zeros((4, 4), complex),
        np.full((4, 4), 1.01),
        np.full((4, 4), -0.01),
        np.full((4, 4), np.nan),
        np.full((4, 4), "x"),
    ],
)
def test_other_arrays_are_refused(array: np.ndarray):
    assert code_of(array) == "unsupported_pixels"


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(image_format: str):
    values = np.array([[0, 300, 6553, 32768, 65535]], np.uint16)
    found = pixels(encoded(Image.fromarray(values), image_format))
    assert np.abs(found[..., 0] - values / 257).max() <= 1


def test_sixteen_bit_big_endian_tiff_is_scaled():
    image = Image.frombytes("I;16B", (2, 1), np.array([100, 50000], ">u2").tobytes())
    assert np.abs(pixels(encoded(image, "TIFF"))[0, :, 0] - np.array([100, 50000]) / 257).max() <= 1


@pytest.mark.parametrize(
    "data",
    [
        tiff(12, 1, 1, b"\xff\xf0\x00"),  # 12 bits per sample
        tiff(16, 0, 1, b"\0\0\xff\xff"),  # white is zero
        tiff(16, 1, 2, b"\0\0\xff\x7f"),  # signed
        tiff(8, 1, 2, b"\x81\x7f"),
        tiff(32, 1, 1, b"\0" * 8),
        tiff(32, 1, 3, struct.pack("<ff", 0, 1)),
        encoded(Image.new("LAB", (2, 1), (50, 10, 20)), "TIFF"),
        encoded(Image.new("F", (2, 1), 0.5), "TIFF"),
    ],
)
def test_pixels_without_a_known_meaning_are_refused(data: bytes):
    assert code_of(data) == "unsupported_pixels"


def test_the_hand_made_tiff_is_sound():
    assert pixels(tiff(16, 1, 1, b"\0\0\xff\xff"))[0, :, 0].tolist() == [0, 255]
    assert pixels(tiff(8, 0, 1, b"\0\xff"))[0, :, 0].tolist() == [255, 0]


@pytest.mark.parametrize("mode", ["I", "F", "HSV", "LAB"])
def test_pil_images_without_a_known_meaning_are_refused(mode: str):
    assert code_of(Image.new(mode, (2, 2))) == "unsupported_pixels"


def test_one_bit_is_black_and_white():
    image = Image.fromarray(np.array([[True, False]]))
    for image_format in ("PNG", "TIFF", "BMP"):
        assert pixels(encoded(image, image_format))[0, :, 0].tolist() == [255, 0]


def palette_image(**info) -> bytes:
    image = Image.new("P", (2, 1), 1)
    image.putpalette([200, 100, 0, 10, 20, 30])
    image.putpixel((0, 0), 0)
    return encoded(image, **info)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encoded(Image.new("RGBA", (1, 1), (200, 100, 0, 0))), [255, 255, 255]),
        (encoded(Image.new("RGBA", (1, 1), (200, 100, 0, 51))), [244, 224, 204]),
        (encoded(Image.new("LA", (1, 1), (0, 51))), [204, 204, 204]),
        (encoded(Image.new("RGB", (1, 1), (1, 2, 3)), transparency=(1, 2, 3)), [255, 255, 255]),
        (encoded(Image.new("RGB", (1, 1), (1, 2, 4)), transparency=(1, 2, 3)), [1, 2, 4]),
        (encoded(Image.new("L", (1, 1), 9), transparency=9), [255, 255, 255]),
        (encoded(Image.new("1", (1, 1), 0), transparency=0), [255, 255, 255]),
        (palette_image(transparency=0), [255, 255, 255]),
        (palette_image(transparency=b"\x33"), [244, 224, 204]),
        (palette_image(), [200, 100, 0]),
        (encoded(Image.new("RGBA", (1, 1), (200, 100, 0, 0)), "WEBP", lossless=True), [255, 255, 255]),
        (encoded(Image.new("RGBA", (1, 1), (200, 100, 0, 51)), "TIFF"), [244, 224, 204]),
        (Image.new("La", (1, 1), (0, 51)), [204, 204, 204]),
        (Image.new("RGBa", (1, 1), (40, 20, 0, 51)), [244, 224, 204]),
        (Image.new("PA", (1, 1), (0, 0)), [255, 255, 255]),
    ],
)
def test_transparency_lies_on_white(data, expected: list[int]):
    assert np.abs(pixels(data)[0, 0] - expected).max() <= 1


@pytest.mark.parametrize(
    ("data", "expected"),  # the first pixel has the transparent colour, the second has not
    [
        (png_row(2, 0, b"\x60", 2, b"\0\x01"), [255, 170]),
        (png_row(4, 0, b"\x5a", 2, b"\0\x05"), [255, 170]),
        (png_row(8, 0, b"\x05\xaa", 2, b"\0\x05"), [255, 170]),
        (png_row(16, 0, b"\x10\x01\x10\x00", 2, b"\x10\x01"), [255, 16]),
        (png_row(16, 2, b"\x10\x01" * 3 + b"\x20\x01" * 3, 2, b"\x10\x01" * 3), [255, 32]),
    ],
)
def test_the_transparent_colour_counts_in_the_depth_of_the_file(data: bytes, expected: list[int]):
    assert pixels(data)[0].tolist() == [[value] * 3 for value in expected]


@pytest.mark.parametrize(("ink", "rgb"), [((0, 255, 255, 0), (255, 0, 0)), ((0, 0, 0, 255), (0, 0, 0))])
@pytest.mark.parametrize("image_format", ["JPEG", "TIFF"])  # Pillow writes CMYK JPEG inverted, as Adobe does
def test_cmyk_is_converted(image_format: str, ink: tuple[int, ...], rgb: tuple[int, ...]):
    data = encoded(Image.new("CMYK", (16, 16), ink), image_format)
    assert (b"Adobe" in data) == (image_format == "JPEG")
    assert np.abs(pixels(data) - rgb).max() <= 3
    assert np.abs(pixels(data, target_size=4) - rgb).max() <= 3


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_counts(image_format: str):
    red, blue = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    data = encoded(red, image_format, save_all=True, append_images=[blue])
    assert np.abs(pixels(data) - (255, 0, 0)).max() <= 5


STORED = {  # how a camera that writes this orientation stores an upright (h, w, 3) array (EXIF 2.32, 4.6.4)
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: np.rot90,
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", [*STORED, 0, 9, 77])
@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "TIFF"])
def test_orientation_is_applied_once(orientation: int, image_format: str):
    upright = noise()
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED.get(orientation, STORED[1])(upright)))
    options = {"lossless": True} if image_format == "WEBP" else {}
    image = open_image(encoded(stored, image_format, exif=exif, **options))
    assert np.array_equal(image, upright)
    assert np.array_equal(open_image(image), upright)  # nothing is left that would turn it again


def test_a_pil_image_is_turned_too_and_stays_as_it_is():
    exif = Image.Exif()
    exif[0x0112] = 6
    source = Image.open(io.BytesIO(encoded(Image.fromarray(noise()), exif=exif)))
    image = open_image(source)
    assert image.size == (6, 9)
    assert source.size == (9, 6)
    assert source.getexif()[0x0112] == 6


def test_the_result_shares_nothing_with_the_source():
    array, source = noise(), Image.fromarray(noise())
    open_image(array).putpixel((0, 0), (0, 0, 0))
    open_image(source).putpixel((0, 0), (0, 0, 0))
    assert np.array_equal(array, noise())
    assert np.array_equal(source, noise())


@pytest.mark.parametrize(("target_size", "size"), [(100, (100, 200)), (101, (200, 400)), (300, (400, 800))])
def test_a_jpeg_is_decoded_no_smaller_than_needed(target_size: int, size: tuple[int, int]):
    assert open_image(encoded(Image.new("RGB", (800, 1600)), "JPEG"), target_size=target_size).size == size


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_reduced_decode_shows_the_same_picture(orientation: int, mode: str, progressive: bool):
    """Against the mean of 8 x 8 pixels, which is what a DCT of one coefficient gives."""
    soft = Image.fromarray(noise(9, 7)).resize((640, 480), Image.Resampling.BICUBIC).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(soft, "JPEG", exif=exif, quality=95, progressive=progressive)
    reduced, full = open_image(data, target_size=60), open_image(data)
    assert reduced.size == ((80, 60) if orientation < 5 else (60, 80))
    assert full.size == ((640, 480) if orientation < 5 else (480, 640))
    difference = np.asarray(reduced, np.float32) - np.asarray(full.reduce(8), np.float32)
    assert np.abs(difference).max() <= 4


def test_limits_hold_for_the_header_even_with_a_target_size():
    data = encoded(Image.new("RGB", (400, 400)), "JPEG")
    assert code_of(data, target_size=32, limits=ImageLimits(max_pixels=159_999)) == "too_many_pixels"
    assert open_image(data, limits=ImageLimits(max_pixels=160_000, max_side=400)).size == (400, 400)


@pytest.mark.parametrize("size", [(50_000, 50_000), (30_001, 1), (1, 30_001), (7072, 7072), (2**31 - 1, 1)])
def test_bombs_are_refused_by_their_header(size: tuple[int, int]):
    assert code_of(png_header(*size)) == "too_many_pixels"


@pytest.mark.parametrize("wrap", [Image.fromarray, lambda a: a])
def test_images_in_memory_have_limits_too(wrap):
    assert code_of(wrap(noise()), limits=ImageLimits(max_pixels=53)) == "too_many_pixels"


def test_bytes_have_a_limit(tmp_path: Path):
    data = encoded(Image.fromarray(noise()))
    (tmp_path / "a.png").write_bytes(data)
    exact, tight = ImageLimits(max_bytes=len(data)), ImageLimits(max_bytes=len(data) - 1)
    for source in (data, bytearray(data), memoryview(data), tmp_path / "a.png", str(tmp_path / "a.png")):
        assert np.array_equal(open_image(source, limits=exact), noise())
        assert code_of(source, limits=tight) == "too_many_bytes"


def test_a_sparse_file_of_ten_gigabytes_costs_nothing(tmp_path: Path):
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(10 * 2**30)
    assert code_of(tmp_path / "a.jpg") == "too_many_bytes"


def test_senseless_arguments_are_the_caller_s_error():
    with pytest.raises(ValueError, match="target_size"):
        open_image(noise(), target_size=0)
    with pytest.raises(TypeError, match="not int"):
        open_image(3)
    with pytest.raises(ValueError, match="greater than 0"):
        ImageLimits(max_pixels=0)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_the_media_type_is_that_of_the_bytes(image_format: str):
    """As the registry of IANA has it: the name of each format in small letters."""
    assert type_of_image(encoded(Image.fromarray(noise()), image_format)) == f"image/{image_format.lower()}"
    with pytest.raises(ImageError, match="unsupported_format"):
        type_of_image(b"<svg/>")
