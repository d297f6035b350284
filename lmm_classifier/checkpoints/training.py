"""What the two training scripts share: arguments, pictures, augmentation, the optimiser, the files."""

from __future__ import annotations

import argparse
import logging
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, ProcessorMixin

from lmm_classifier.checkpoints.digits import PICTURE_SIDE, DigitScan, picture_of, scans_in

logger = logging.getLogger(__name__)

# Augmentation: what another hand and another placement on the sheet would change in an 8x8 scan.
_ROTATION = math.radians(10)
_SHEAR = 0.15
_ZOOM = 0.1  # share of the size
_SHIFT = 0.08  # share of the side: 5 of 64 px
_SEAM = 1 / 8  # share of the side over which two halves fade into each other: one scanned pixel
_WARM_UP = 0.15  # share of the steps
_MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True, slots=True)
class Arguments:
    """The command line of a training script."""

    output: Path
    seed: int
    steps: int


def parse_arguments(description: str, output: Path, steps: int) -> Arguments:
    """Read `--output DIR --seed N --steps N`; the values given here are the defaults."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--output", type=Path, default=output)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=steps)
    return Arguments(**vars(parser.parse_args()))


def seed_everything(seed: int) -> torch.Generator:
    """Seed Python, NumPy and torch; returns a generator for the batches."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True, slots=True, eq=False)
class Inked:
    """Some scans as a tensor.

    Attributes:
        ink: float32 (n, 1, 64, 64), 0 paper to 1 ink: zero padding then is paper.
        names: n labels.
    """

    ink: Tensor
    names: tuple[str, ...]

    def __getitem__(self, rows: Tensor) -> Inked:
        return Inked(self.ink[rows], tuple(self.names[row] for row in rows.tolist()))

    def __len__(self) -> int:
        return len(self.names)


def known_scans(split: str) -> Inked:
    """The scans of a split without the held-out digits, as any caller will load them from their PNG file."""
    return _inked([scan for scan in scans_in(split) if scan.known])


def _inked(scans: Sequence[DigitScan]) -> Inked:
    """Draw the pictures of these scans."""
    pictures = np.stack([np.asarray(picture_of(scan.pixels)) for scan in scans])
    ink = 1 - torch.from_numpy(pictures).float().unsqueeze(1) / 255
    return Inked(ink, tuple(scan.name for scan in scans))


def photos(ink: Tensor) -> list[Tensor]:
    """Float ink (n, 1, 64, 64) to n uint8 RGB photos (3, 64, 64), which an image processor takes."""
    grey = (255 * (1 - ink)).round().clamp(0, 255).to(torch.uint8)
    return list(grey.expand(-1, 3, -1, -1))


def augment(ink: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate, shear, zoom and shift each picture a little; float32 (n, 1, 64, 64) in and out."""

    def uniform(limit: float) -> Tensor:
        return (2 * torch.rand(len(ink), generator=generator) - 1) * limit

    angle, shear, zoom = uniform(_ROTATION), uniform(_SHEAR), 1 + uniform(_ZOOM)
    x, y = uniform(2 * _SHIFT), uniform(2 * _SHIFT)  # affine_grid: the side is 2 units long
    rows = [
        torch.stack([zoom * angle.cos(), shear - zoom * angle.sin(), x], dim=1),
        torch.stack([zoom * angle.sin(), zoom * angle.cos(), y], dim=1),
    ]
    grid = functional.affine_grid(torch.stack(rows, dim=1), list(ink.shape), align_corners=False)
    return functional.grid_sample(ink, grid, align_corners=False)


def chimeras(scans: Inked, count: int, generator: torch.Generator) -> Tensor:
    """Draw signs that are no known digit: float32 (m, 1, 64, 64), m <= count.

    Half are cut from one half each of two different digits, half are two digits written over each
    other. They teach a model that not every sign has a name (outlier exposure, Hendrycks et al.,
    ICLR 2019) without showing it the digits on which that is measured.
    """
    pairs = torch.randint(len(scans), (count, 2), generator=generator).tolist()
    different = [pair for pair in pairs if scans.names[pair[0]] != scans.names[pair[1]]]
    first, second = (scans.ink[[pair[side] for pair in different]] for side in (0, 1))
    position = (torch.arange(PICTURE_SIDE) + 0.5) / PICTURE_SIDE - 0.5
    share = (position / _SEAM + 0.5).clamp(0, 1)  # of the second digit, from one edge to the other
    horizontal = torch.rand(len(different), 1, 1, 1, generator=generator) < 0.5
    share = torch.where(horizontal, share.view(1, 1, -1, 1), share.view(1, 1, 1, -1))
    cut = first * (1 - share) + second * share
    written_over = torch.maximum(first, second)
    return torch.where(torch.rand(len(different), 1, 1, 1, generator=generator) < 0.5, cut, written_over)


def batches(scans: Inked, size: int, generator: torch.Generator) -> Iterator[Inked]:
    """Endless batches, each scan once per epoch; the rest that fills no batch is left out."""
    while True:
        order = torch.randperm(len(scans), generator=generator)
        for rows in torch.split(order, size):
            if len(rows) == size:
                yield scans[rows]


def train(model: nn.Module, loss_of: Callable[[], Tensor], steps: int, peak_rate: float) -> list[float]:
    """Minimise a loss with AdamW and one learning-rate cycle.

    Args:
        model: its parameters are trained.
        loss_of: draws a batch and gives its loss, a scalar tensor.
        steps: number of batches.
        peak_rate: highest learning rate.

    Returns:
        The loss of every step.
    """
    optimiser = torch.optim.AdamW(model.parameters(), lr=peak_rate, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, peak_rate, total_steps=max(steps, 2), pct_start=_WARM_UP
    )
    losses: list[float] = []
    model.train()
    for step in range(1, steps + 1):
        optimiser.zero_grad()
        loss = loss_of()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), _MAX_GRADIENT_NORM)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        if step % 50 == 0 or step == steps:
            logger.info("step %d of %d: loss %.3f", step, steps, float(np.mean(losses[-50:])))
    model.eval()
    return losses


def save(output: Path, *parts: PreTrainedModel | ProcessorMixin) -> None:
    """Save model and processor in the Hugging Face format, next to the model card that is there already."""
    for part in parts:
        part.save_pretrained(output)
    for file in output.iterdir():
        file.chmod(0o644)  # safetensors writes 0600, which an installed package would keep
