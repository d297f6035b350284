"""Which part of a corpus an image belongs to: a fixed function of the image's digest and nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping

_DIGITS = 13  # hex digits read: 52 bits, which a float64 holds exactly


def split_of(digest: str, shares: Mapping[str, float]) -> str:
    """Name the split of the image with this digest.

    The digest is read as a number in [0, 1) and falls into one of the consecutive intervals that
    `shares` cuts. So the same image is always in the same split, byte-equal copies stay together,
    and adding or removing other images moves nobody.

    Args:
        digest: hexadecimal, at least 13 digits, uniformly distributed (SHA-256, say).
        shares: split name -> share in (0, 1], in order; the shares sum to 1.

    Raises:
        ValueError: the shares do not sum to 1, or one is not positive.
    """
    if any(share <= 0 for share in shares.values()) or not math.isclose(
        sum(shares.values()), 1, abs_tol=1e-9
    ):
        raise ValueError(f"shares must be positive and sum to 1, got {dict(shares)}")
    position = int(digest[:_DIGITS], 16) / 16**_DIGITS
    edge = 0.0
    for name, share in shares.items():
        edge += share
        if position < edge:
            return name
    return name  # the last interval is closed: the edges may sum to 1 - 1e-16
