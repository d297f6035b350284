"""Where the words for photos come from: a model of this process (`local`), or a service (`server`)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class CaptionFailure:
    """Why a photo has no caption.

    Attributes:
        reason: for people.
        its_own: whether the photo is what is wrong; else the next one may fare no better.
    """

    reason: str
    its_own: bool = False


Outcome = CaptionFailure | None
Keep = Callable[[Path, str], Outcome]
"""Takes the words for a photo, in any thread."""


class CaptionSource(Protocol):
    """Puts photos into words."""

    def check(self) -> None:
        """Open the model, or see whether the service is there.

        Raises:
            LmmClassifierError: no photo can be put into words.
        """
        ...

    def outcomes(self, photos: Sequence[Path], keep: Keep) -> Generator[Outcome, None, None]:
        """Give the words for each photo to `keep` as soon as there are any.

        Yields:
            why a photo has none, or else what `keep` says, in the order of the photos.

        Raises:
            LmmClassifierError: no further photo can be put into words.
        """
        ...
