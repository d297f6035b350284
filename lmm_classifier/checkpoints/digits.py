"""The demo's photos: scikit-learn's 1,797 handwritten digits of 8x8 pixels, cut into splits by digest.

They are the test part of the UCI data set "Optical Recognition of Handwritten Digits" (E. Alpaydin and
C. Kaynak, 1998, https://doi.org/10.24432/C50P49, CC BY 4.0). No torch here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lmm_classifier.corpus.split import split_of

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
HELD_OUT = frozenset({"eight", "nine"})  # the last two, named before any model was trained
KNOWN_NAMES = tuple(name for name in DIGIT_NAMES if name not in HELD_OUT)
SPLIT_SHARES: Mapping[str, float] = MappingProxyType(
    {"train": 0.52, "index": 0.08, "calibration": 0.15, "query": 0.25}
)
UNKNOWN_FOLDER = "query_unknown"
PICTURE_SIDE = 64  # px: large enough to read on a screen, a whole multiple of 8
_FULL_INK = 16.0  # each value counts the inked pixels of one 4x4 block of the 32x32 scan


@dataclass(frozen=True, slots=True, eq=False)
class DigitScan:
    """One scan.

    Attributes:
        name: what it shows, one of DIGIT_NAMES.
        pixels: uint8 (8, 8), read-only; dark ink (0) on white paper (255).
        digest: SHA-256 of the 64 pixel bytes in row order, hexadecimal.
        split: a key of SPLIT_SHARES; always "query" for a held-out digit.
    """

    name: str
    pixels: NDArray[np.uint8]
    digest: str
    split: str

    @property
    def known(self) -> bool:
        """Whether models and index may see this digit at all."""
        return self.name not in HELD_OUT


@cache
def load_digit_scans() -> tuple[DigitScan, ...]:
    """Read all 1,797 scans, in scikit-learn's order, from the file that comes with it."""
    from sklearn.datasets import load_digits  # here, not above: it takes a second to import

    ink, targets = load_digits(return_X_y=True)
    grey = np.rint(255 * (1 - ink / _FULL_INK)).astype(np.uint8).reshape(-1, 8, 8)
    return tuple(_scan(DIGIT_NAMES[target], pixels) for target, pixels in zip(targets, grey, strict=True))


def scans_in(split: str) -> tuple[DigitScan, ...]:
    """The scans of one split; "query" holds the held-out digits too.

    Raises:
        ValueError: no such split.
    """
    if split not in SPLIT_SHARES:
        raise ValueError(f"split must be one of {list(SPLIT_SHARES)}, got {split!r}")
    return tuple(scan for scan in load_digit_scans() if scan.split == split)


def picture_of(pixels: NDArray[np.uint8]) -> Image.Image:
    """Enlarge 8x8 pixels to a grey picture of 64x64.

    Bicubic, because eightfold squares are hard to read and their edges are frequencies no pen drew:
    an encoder that resizes again would see the grid before the digit.
    """
    return Image.fromarray(pixels).resize((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.BICUBIC)


def write_digits(root: Path) -> None:
    """Write every scan as a PNG file: `root/<split>/<label>/<digest[:16]>.png`.

    Held-out digits go to `root/query_unknown/<label>/`, so that each folder is a corpus of its own.
    """
    for scan in load_digit_scans():
        folder = root / (scan.split if scan.known else UNKNOWN_FOLDER) / scan.name
        folder.mkdir(parents=True, exist_ok=True)
        picture_of(scan.pixels).save(folder / f"{scan.digest[:16]}.png")


def _scan(name: str, pixels: NDArray[np.uint8]) -> DigitScan:
    pixels.setflags(write=False)
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    split = "query" if name in HELD_OUT else split_of(digest, SPLIT_SHARES)
    return DigitScan(name, pixels, digest, split)
