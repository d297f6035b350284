"""How often each client may ask."""

from __future__ import annotations

import math
import time
from collections import OrderedDict

_REMEMBERED = 10_000  # clients; of more, whoever asked longest ago begins anew


class RateLimiter:
    """A bucket of requests for each client, which fills up again within a minute.

    Args:
        per_minute: its size.
    """

    def __init__(self, per_minute: int) -> None:
        self._size = per_minute
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_for(self, client: str) -> int:
        """Seconds that a client must wait; 0, and one request less, if it need not."""
        now = time.monotonic()
        left, then = self._buckets.pop(client, (float(self._size), now))
        left = min(left + (now - then) * self._size / 60, self._size)
        wait = 0 if left >= 1 else math.ceil((1 - left) * 60 / self._size)
        self._buckets[client] = (left if wait else left - 1, now)
        if len(self._buckets) > _REMEMBERED:
            self._buckets.popitem(last=False)
        return wait
