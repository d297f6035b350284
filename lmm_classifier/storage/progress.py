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
        before: how many an earlier attempt had done: they say nothing of the rate.
        unknown: how many of them no label fits, where they are classified.
    """

    stage: str
    seen: int = 0
    total: int | None = None
    skipped: int = 0
    before: int = 0
    unknown: int | None = None


OnProgress = Callable[[Progress], None]


def ignore_progress(progress: Progress) -> None:
    """For work that nobody waits for."""
