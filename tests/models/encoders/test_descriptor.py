from __future__ import annotations

import colorsys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.feature import hog

from lmm_classifier.errors import ModelError
from lmm_classifier.models.loading import load_encoder
from lmm_classifier.models.spec import ModelSpec

HOG_DIM = 1764  # (8 - 1)^2 blocks x 4 cells x 9 orientations, Dalal and Triggs' arithmetic
DIM = HOG_DIM + 16 * 4 * 4


def encode(*images: Image.Image) -> np.ndarray:
    return load_encoder(ModelSpec("descriptor")).encode(images)


def solid(colour: tuple[int, int, int], size: tuple[int, int] = (20, 30)) -> Image.Image:
    return Image.new("RGB", size, colour)


def photo(seed: int = 0) -> Image.Image:
    """A blurred random picture of the descriptor's own size, so that no resizing comes between."""
    small = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC)


def test_the_gradient_part_is_that_of_skimage() -> None:
    grey = np.asarray(photo(), np.float64).mean(axis=2) / 255
    expected = hog(
        grey,
        orientations=9,
        pixels_per_cell=(8, 8),
        cells_per_block=(2, 2),
        block_norm="L2-Hys",
        transform_sqrt=True,
    )
    part = encode(photo())[0, :HOG_DIM]
    assert np.linalg.norm(part) == pytest.approx(np.sqrt(0.5), abs=1e-6)  # two parts of equal weight
    # Not equal to the last digit: in float32 a gradient on the edge of two orientations may change sides.
    assert part @ expected / np.linalg.norm(part) / np.linalg.norm(expected) > 0.9999


def test_the_colour_part_is_the_root_of_an_hsv_histogram_counted_by_hand() -> None:
    counts: Counter[tuple[int, int, int]] = Counter()
    for red, green, blue in np.asarray(photo()).reshape(-1, 3) / 255:
        hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
        counts[min(int(hue * 16), 15), min(int(saturation * 4), 3), min(int(value * 4), 3)] += 1
    expected = np.zeros((16, 4, 4))
    for place, count in counts.items():
        expected[place] = count / 4096
    shares = 2 * encode(photo())[0, HOG_DIM:] ** 2  # two parts of equal norm: half of the squared one each
    assert np.abs(shares - expected.ravel()).sum() <= 20 / 4096  # 10 pixels on edges


@pytest.mark.parametrize(
    ("colour", "place"),
    [  # (hue bin x 4 + saturation bin) x 4 + value bin
        ((255, 0, 0), (0 * 4 + 3) * 4 + 3),
        ((0, 0, 255), (10 * 4 + 3) * 4 + 3),  # 240 degrees: 10.67 sixteenths
        ((0, 255, 0), (5 * 4 + 3) * 4 + 3),  # 120 degrees: 5.33 sixteenths
        ((0, 0, 0), 0),
        ((255, 255, 255), 3),
        ((140, 140, 140), 2),
    ],
)
def test_one_colour_falls_into_one_bin_and_has_no_gradient(colour: tuple[int, int, int], place: int) -> None:
    vector = encode(solid(colour))[0]
    expected = np.zeros(DIM, np.float32)
    expected[HOG_DIM + place] = 1
    np.testing.assert_allclose(vector, expected, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (2000, 1), (3, 3), (641, 479)])
def test_any_size_gives_a_finite_unit_vector(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    vectors = encode(Image.fromarray(pixels), solid((0, 0, 0), size), solid((255, 255, 255), size))
    assert vectors.shape == (3, DIM)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(
    "spec",
    [
        ModelSpec("descriptor", weights="./somewhere"),
        ModelSpec("descriptor", dtype="bfloat16"),
        ModelSpec("descriptor", dtype="float16"),
    ],
)
def test_refuses_what_it_cannot_heed(spec: ModelSpec) -> None:
    with pytest.raises(ModelError, match="takes no weights and computes in float32"):
        load_encoder(spec)


def test_five_neighbours_tell_upright_from_level_stripes() -> None:
    """The two classes share their colours, and the stripes of no two pictures lie the same."""

    def stripes(upright: bool, seed: int) -> Image.Image:
        draw = np.random.default_rng(seed)
        wave = np.sin(np.arange(64) * draw.uniform(0.6, 0.9) + draw.uniform(0, 6))[None, :]
        grey = 127 + 90 * np.repeat(wave, 64, axis=0) + draw.normal(0, 10, (64, 64))
        pixels = np.repeat((grey if upright else grey.T)[:, :, None], 3, axis=2)
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))

    known = [(stripes(upright, seed), upright) for seed in range(10) for upright in (True, False)]
    asked = [(stripes(upright, seed), upright) for seed in range(100, 110) for upright in (True, False)]
    assert five_nearest_accuracy(known, asked) == 1


def test_five_neighbours_on_real_flowers(realdata: Path) -> None:
    """Measured: 0.633 of the 240 test photos right; a guess gets 1 of 12, 0.083."""
    root = realdata / "data" / "flowers12"
    known, asked = (
        [(Image.open(path).convert("RGB"), path.parent.name) for path in sorted((root / part).rglob("*.jpg"))]
        for part in ("train", "test")
    )
    assert (len(known), len(asked)) == (720, 240)
    assert five_nearest_accuracy(known, asked) > 0.6


def five_nearest_accuracy(known: list, asked: list) -> float:
    """Share of the asked pictures that the majority of their 5 nearest gets right; ties go to the nearest."""
    gallery, queries = encode(*(image for image, _ in known)), encode(*(image for image, _ in asked))
    right = 0
    for similarities, (_, truth) in zip(queries @ gallery.T, asked, strict=True):
        nearest = [known[row][1] for row in np.argsort(-similarities, kind="stable")[:5]]
        right += Counter(nearest).most_common(1)[0][0] == truth
    return right / len(asked)
