"""Masks in other forms, against pycocotools and by hand."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco

from lmm_classifier.api.serialize import serialize_sample
from lmm_classifier.errors import ConfigError, ImageError
from lmm_classifier.masks import (
    apply_mask,
    compose_overlay,
    from_png,
    from_polygons,
    from_rle,
    label_colour,
    placed,
    tight_box,
    to_png,
    to_polygons,
    to_rle,
)
from lmm_classifier.types import Region, Sample


def noise(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width)) < 0.5


# of pycocotools' decode under numpy 2; the package does not call it
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SHAPES = given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))


class TestForms:
    @SHAPES
    @settings(max_examples=60, deadline=None)
    def test_run_lengths_are_those_of_pycocotools(self, height: int, width: int, seed: int) -> None:
        mask = noise(height, width, seed)
        rle = json.loads(json.dumps(to_rle(mask)))
        np.testing.assert_array_equal(coco.decode(rle).astype(bool), mask)
        np.testing.assert_array_equal(from_rle(rle), mask)
        np.testing.assert_array_equal(from_rle({**rle, "counts": rle["counts"].encode()}), mask)
        assert coco.area(rle) == mask.sum()

    def test_large_and_uncompressed_run_lengths(self) -> None:
        mask = np.zeros((3000, 2000), bool)
        mask[5:2900, 7:1900] = True
        np.testing.assert_array_equal(from_rle(to_rle(mask)), mask)
        # by hand: columns first, zeros first
        np.testing.assert_array_equal(from_rle({"size": [2, 3], "counts": [1, 2, 3]}), [[0, 1, 0], [1, 0, 0]])

    @pytest.mark.parametrize(
        "rle",
        [
            {},
            {"size": [4, 4]},
            {"size": [4, 4], "counts": ""},
            {"size": [4, 4], "counts": "0"},
            {"size": [4, 4], "counts": "\u00e9"},
            {"size": [4, 4], "counts": "P"},
            {"size": [4, 4], "counts": "P" * 5000},
            {"size": [4, 4], "counts": [17]},
            {"size": [4, 4], "counts": [-1, 17]},
            {"size": [-4, -4], "counts": [16]},
            {"size": [10**6, 10**6], "counts": "04"},
            {"size": [10**6, 10**6], "counts": [10**12]},
            {"size": [4], "counts": [4]},
            {"size": [1.5, 2], "counts": [3]},
            {"size": ["a", 2], "counts": [3]},
            {"size": [2, 2], "counts": None},
            {"size": [2, 2], "counts": 4},
        ],
    )
    def test_wrong_run_lengths_are_refused(self, rle: dict[str, object]) -> None:
        with pytest.raises(ConfigError, match="no COCO run lengths"):
            from_rle(rle)

    @SHAPES
    @settings(max_examples=60, deadline=None)
    def test_polygons_give_the_same_pixels(self, height: int, width: int, seed: int) -> None:
        mask = noise(height, width, seed)
        np.testing.assert_array_equal(from_polygons(to_polygons(mask), (width, height)), mask)

    def test_a_polygon_by_hand(self) -> None:
        mask = np.zeros((6, 9), bool)
        mask[1:3, 2:7] = True
        [outline] = to_polygons(mask)
        assert (outline.min(axis=0).tolist(), outline.max(axis=0).tolist()) == ([2, 1], [7, 3])
        square = [[2, 1], [7, 1], [7, 3], [2, 3]]
        np.testing.assert_array_equal(from_polygons([square], (9, 6)), mask)

    def test_a_png_is_0_and_255(self) -> None:
        mask = noise(7, 11, 3)
        with Image.open(io.BytesIO(to_png(mask))) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "L", (11, 7))
            np.testing.assert_array_equal(np.asarray(image), mask * 255)
        np.testing.assert_array_equal(from_png(to_png(mask)), mask)
        grey = io.BytesIO()
        Image.new("L", (2, 2), 128).save(grey, "PNG")
        with pytest.raises(ConfigError, match="0 and 255"):
            from_png(grey.getvalue())
        with pytest.raises(ImageError):
            from_png(b"no picture")

    def test_boxes_are_tight_and_half_open(self) -> None:
        mask = np.zeros((6, 9), bool)
        assert tight_box(mask) is None
        mask[2, 3] = mask[4, 8] = True
        assert tight_box(mask) == (3, 2, 9, 5)
        whole = placed(np.ones((2, 3), bool), (4, 1, 7, 3), (9, 6))
        assert (tight_box(whole), whole.sum()) == ((4, 1, 7, 3), 6)


class TestPictures:
    def test_the_mask_becomes_alpha_and_the_alpha_there_was_is_kept(self) -> None:
        image = Image.new("RGBA", (3, 2), (10, 20, 30, 100))
        image.putpixel((0, 0), (10, 20, 30, 0))
        mask = np.asarray([[True, True, False], [False, True, True]])
        cut = apply_mask(image, mask)
        assert (cut.mode, cut.size) == ("RGBA", (3, 2))
        np.testing.assert_array_equal(np.asarray(cut)[..., 3], [[0, 100, 0], [0, 100, 100]])
        assert cut.getpixel((1, 0)) == (10, 20, 30, 100)
        plain = apply_mask(Image.new("RGB", (3, 2)), mask)
        np.testing.assert_array_equal(np.asarray(plain)[..., 3], mask * 255)

    def test_a_mask_of_another_size_than_the_photo_is_refused(self) -> None:
        message = r"the mask is of 2 x 3 px, the photo of 3 x 2"
        with pytest.raises(ConfigError, match=message):
            apply_mask(Image.new("RGB", (3, 2)), np.ones((3, 2), bool))
        with pytest.raises(ConfigError, match=message):
            compose_overlay(Image.new("RGB", (3, 2)), [region("a", np.ones((3, 2), bool))])

    def test_an_overlay_is_half_photo_and_half_the_colour_of_the_label(self) -> None:
        left = np.zeros((2, 4), bool)
        left[:, :2] = True
        image = Image.new("RGB", (4, 2), (100, 100, 100))
        for regions in (
            [region("cat", left), region("dog", ~left)],
            [region("dog", ~left), region("cat", left)],  # whatever the order
        ):
            drawn = np.asarray(compose_overlay(image, regions))
            for mask, label in ((left, "cat"), (~left, "dog")):
                half = (np.asarray(label_colour(label)) + 100) / 2
                assert np.abs(drawn[mask] - half).max() <= 0.5
        assert (np.asarray(compose_overlay(image, regions, alpha=0)) == 100).all()
        assert (np.asarray(compose_overlay(image, [Region((0, 0, 4, 2))])) == 100).all()
        with pytest.raises(ConfigError, match="alpha"):
            compose_overlay(image, [], alpha=1.5)

    def test_colours_do_not_run_out(self) -> None:
        colours = {label_colour(f"label {i}") for i in range(133)}
        assert len(colours) == 133
        assert label_colour("person") == label_colour("person")


def region(label: str, mask: np.ndarray) -> Region:
    return Region((0, 0, mask.shape[1], mask.shape[0]), label, "test", 1.0, mask)


def test_masks_are_shown_as_run_lengths() -> None:
    sample = Sample.from_image("photo", Image.new("RGB", (9, 6)))
    mask = noise(6, 9, 0)
    shown = serialize_sample(Sample(**{**fields(sample), "regions": (*sample.regions, region("cat", mask))}))
    whole, cat = json.loads(json.dumps(shown))["regions"]
    assert whole == {"box": [0, 0, 9, 6], "kind": "image", "source": "image", "score": 1.0}
    np.testing.assert_array_equal(coco.decode(cat["mask"]).astype(bool), mask)


def test_a_region_refuses_what_is_no_mask_and_nobody_writes_to_one() -> None:
    with pytest.raises(ValueError, match="mask must be bool"):
        Region((0, 0, 2, 2), mask=np.zeros((2, 2), np.uint8))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="read-only"):
        region("cat", np.zeros((2, 2), bool)).mask[0] = True  # type: ignore[index]


def fields(sample: Sample) -> dict[str, object]:
    return {name: getattr(sample, name) for name in ("sample_id", "image", "regions")}
