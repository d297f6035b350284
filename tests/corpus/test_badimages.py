"""Other people's broken, rotated, 16-bit and odd images: LMM_CLASSIFIER_REALDATA names where they lie."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import png_oracle
import pytest
from PIL import Image

from lmm_classifier.corpus.images import open_image
from lmm_classifier.errors import IMAGE_ERROR_CODES, ImageError

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def badimages(realdata: Path) -> Path:
    folder = realdata / "badimages"
    if not folder.is_dir():
        pytest.skip("LMM_CLASSIFIER_REALDATA has no folder badimages/")
    return folder


def outcome(path: Path, **options) -> Image.Image | ImageError:
    try:
        return open_image(path, **options)
    except ImageError as error:
        return error


@pytest.mark.parametrize("target_size", [None, 16])
def test_every_file_is_an_rgb_image_or_an_error_with_a_listed_code(badimages: Path, target_size: int | None):
    files = [path for path in sorted(badimages.rglob("*")) if path.is_file()]
    assert len(files) > 200
    for path in files:
        result = outcome(path, target_size=target_size)
        if isinstance(result, Image.Image):
            assert (result.mode, result.info, type(result)) == ("RGB", {}, Image.Image), path
            assert np.asarray(result).shape == (result.height, result.width, 3), path
        else:
            assert result.code in IMAGE_ERROR_CODES, path
            assert not re.search(r"0x|/|\n", str(result)), (path, str(result))


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("broken.png", "corrupt"),
        ("truncated_jpeg.jpg", "truncated"),
        ("truncated_image.png", "truncated"),
        ("decompression_bomb.gif", "too_many_pixels"),
        ("crash-4f085cc12ece8cde18758d42608bed6a2a2cfb1c.tif", "corrupt"),
        ("psd-oob-write-overflow.psd", "unsupported_format"),
        ("decompression_bomb.ico", "unsupported_format"),
    ],
)
def test_the_code_says_what_is_wrong(badimages: Path, name: str, code: str):
    result = outcome(badimages / "pillow" / name)
    assert isinstance(result, ImageError)
    assert result.code == code


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("sugarshack_bad_mpo_header.jpg", (640, 480)),
        ("hopper_bad_exif.jpg", (500, 500)),
        ("invalid-exif.jpg", (200, 200)),
        ("invalid-exif-without-x-resolution.jpg", (300, 200)),
        ("broken_exif_dpi.jpg", (100, 100)),
        ("truncated_exif_dpi.jpg", (480, 640)),
        ("photoshop-200dpi-broken.jpg", (200, 200)),
    ],
)
def test_broken_metadata_do_not_cost_the_photo(badimages: Path, name: str, size: tuple[int, int]):
    assert open_image(badimages / "pillow" / name).size == size


def test_every_valid_pngsuite_file_has_the_right_pixels(badimages: Path):
    files = [path for path in sorted((badimages / "pngsuite/png").glob("*.png")) if path.name[0] != "x"]
    assert len(files) == 161
    off = {}
    for path in files:
        truth = png_oracle.on_white(path.read_bytes())
        off[path.name] = np.abs(np.asarray(open_image(path), dtype=float) - truth).max()
    assert {name: value for name, value in off.items() if value > 2} == {}
    assert sum("0g16" in name for name in off) == 13


def test_corrupt_pngsuite_files_are_refused(badimages: Path):
    files = sorted((badimages / "pngsuite/png").glob("x*.png"))
    opened = [path.name for path in files if not isinstance(outcome(path), ImageError)]
    assert len(files) == 14
    assert set(opened) <= {"xcsn0g01.png"}  # only a wrong checksum: the pixels are whole


@pytest.mark.parametrize("shape", ["Landscape", "Portrait"])
@pytest.mark.parametrize("target_size", [None, 150])
def test_photos_are_turned_upright(badimages: Path, shape: str, target_size: int | None):
    folder = badimages / "exif-orientation"
    with Image.open(folder / f"{shape}_1.jpg") as image:  # orientation 1: stored upright
        reference = image.convert("L").resize((64, 64))
    for orientation in range(9):  # 0 is no valid orientation: upright
        image = open_image(folder / f"{shape}_{orientation}.jpg", target_size=target_size)
        assert (image.width > image.height) == (shape == "Landscape")
        pixels = np.asarray(image.convert("L").resize((64, 64)), dtype=float)
        assert np.corrcoef(pixels.ravel(), np.asarray(reference, dtype=float).ravel())[0, 1] > 0.98


def test_the_bmp_suite_opens(badimages: Path):
    files = sorted((badimages / "bmp/g").glob("*.bmp"))
    if not files:
        pytest.skip("LMM_CLASSIFIER_REALDATA has no badimages/bmp/g")
    assert sum(not isinstance(outcome(path), ImageError) for path in files) >= len(files) - 1
