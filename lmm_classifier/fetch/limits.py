"""What one fetch may cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """What one fetch may cost.

    Attributes:
        connect_s: seconds until a name is looked up and a connection stands, TLS included.
        silence_s: seconds without a byte.
        total_s: seconds for everything: all tries, waits and redirects.
        max_bytes: of the answer.
        tries: how often at most, after no answer, a broken one, or one of `AGAIN`.
        wait_s: seconds before the second try; twice as long before each further one, and longer where the
            server says so (Retry-After, in seconds).
        patient: whether an answer with which the server says so is no try: then it is asked again just when
            it wants to be, until the time is over.
        redirects: how many are followed; none after a POST.
    """

    connect_s: float = 3.0
    silence_s: float = 10.0
    total_s: float = 60.0
    max_bytes: int = 256 * 2**20
    tries: int = 3
    wait_s: float = 0.5
    patient: bool = False
    redirects: int = 3


DEFAULT_LIMITS = FetchLimits()
PICTURE_LIMITS = FetchLimits(silence_s=5.0, total_s=10.0, max_bytes=25 * 2**20, tries=1)
"""Of a picture whose URL a stranger gave: somebody waits for it, and a second look-up may say more."""
