"""What a model says per cell of its own grid, per pixel of the photo."""

from __future__ import annotations

import torch


def upsampled(grid: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear, cells and pixels aligned at their corners' edges, as SAM 2 and transformers do.

    Args:
        grid: float (h, w).
        size: width and height of the photo in px.

    Returns:
        float (height, width).
    """
    resized = torch.nn.functional.interpolate(
        grid[None, None], size=size[::-1], mode="bilinear", align_corners=False
    )
    return resized[0, 0]
