"""What long work tells whoever is waiting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """Where long work stands.

    Attributes:
        stage: what is being done.
        seen: files done so far in this stage.
        total: of how many; None where nothing is counted.
        skipped: how many of them were skipped.
    """

    stage: str
    seen: int = 0
    total: int | None = None
    skipped: int = 0


OnProgress = Callable[[Progress], None]


def unheard(progress: Progress) -> None:
    """For work that nobody waits for."""
