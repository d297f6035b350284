"""Pictures made on the spot, and a corpus of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lmm_classifier.types import EncoderContract

COLOURS = {"blue": (30, 60, 220), "green": (30, 200, 60), "red": (220, 40, 30)}


def picture(colour: tuple[int, int, int], seed: int = 0, side: int = 24) -> Image.Image:
    """A noisy plain colour: pictures of one colour are near each other, not equal."""
    noise = np.random.default_rng(seed).integers(-20, 21, (side, side, 3))
    return Image.fromarray((np.asarray(colour) + noise).clip(0, 255).astype(np.uint8))


@dataclass(frozen=True)
class Disturbed:
    """An encoder whose every call is somebody else's."""

    contract: EncoderContract
    encode: Callable[[Sequence[Image.Image]], np.ndarray]


def write_corpus(root: Path, per_label: int = 6, seed: int = 0) -> Path:
    """root/<colour>/<n>.png for the three colours."""
    for offset, (label, colour) in enumerate(COLOURS.items()):
        (root / label).mkdir(parents=True)
        for i in range(per_label):
            picture(colour, seed=seed + 100 * offset + i).save(root / label / f"{i}.png")
    return root
