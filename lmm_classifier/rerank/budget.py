"""How much a reranker is asked: a share of the regions, and until when."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lmm_classifier.errors import ModelError, OutOfTimeError
from lmm_classifier.rerank.requests import RerankRequest
from lmm_classifier.types import Choice

Result = Choice | ModelError | str
"""What the model answered; why it could not be asked; or why it was not."""
Ask = Callable[[Sequence[RerankRequest], float | None], Sequence[Choice | ModelError]]
"""Asks about requests together, until a time on `time.monotonic` (None: as long as it takes)."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent on one batch.

    Attributes:
        started: `time.monotonic` when the batch came to the reranker.
        max_share: of the regions of the batch that may be asked about, in (0, 1]; None: all.
        max_seconds: for the batch; None: as long as it takes.
        deadline: seconds after a photo came in until which its answer is waited for; None: no limit.
    """

    started: float
    max_share: float | None = None
    max_seconds: float | None = None
    deadline: float | None = None

    @property
    def is_timed(self) -> bool:
        """Whether time is limited at all."""
        return self.max_seconds is not None or self.deadline is not None

    def share(self, regions: int) -> int | None:
        """How many of so many regions may be asked about, rounded down, but one at least; None: all."""
        if self.max_share is None:
            return None
        return max(math.floor(self.max_share * regions + 1e-9), 1)  # .29 of 100 are 29 in decimals

    def end(self, request: RerankRequest) -> tuple[float, str]:
        """When the answer is no longer waited for, on `time.monotonic`, and how that is told."""
        ends = [(math.inf, "")]
        if self.max_seconds is not None:
            reason = f"max_seconds: the {self.max_seconds:g} s for this batch have passed"
            ends.append((self.started + self.max_seconds, reason))
        if self.deadline is not None:
            reason = f"deadline: {self.deadline:g} s have passed since the photo came in"
            ends.append((request.sample.arrived + self.deadline, reason))
        return min(ends)

    def first_end(self, requests: Sequence[RerankRequest]) -> float:
        """The earliest end that has not passed when the batch came; that moment, where all have."""
        ends = [self.end(request)[0] for request in requests]
        return min((end for end in ends if end > self.started), default=self.started)


def asked_in_time(batches: Iterator[Sequence[RerankRequest]], budget: Budget, ask: Ask) -> Iterator[Result]:
    """Ask pass by pass, of `passes`; none is begun that would, going by the last one, end too late.

    Yields:
        per request, in the order of the passes, its result.
    """
    last = 0.0  # seconds of a pass
    for requests in batches:
        begun = time.monotonic()
        ends = [budget.end(request) for request in requests]
        waiting = [i for i, (end, _) in enumerate(ends) if begun + last <= end]
        due = min((ends[i][0] for i in waiting), default=begun)
        answers = dict(zip(waiting, ask([requests[i] for i in waiting], due), strict=True))
        if waiting:
            last = time.monotonic() - begun
        for i, (_, reason) in enumerate(ends):
            answer = answers.get(i, reason)
            yield reason if isinstance(answer, OutOfTimeError) else answer


def passes(
    requests: Sequence[RerankRequest], pairs_at_most: int, pairs_per_option: int
) -> Iterator[Sequence[RerankRequest]]:
    """Cut requests into forward passes: at most so many (image, option) pairs each, or a single request.

    Args:
        requests: in the order they are asked.
        pairs_at_most: of a pass.
        pairs_per_option: how often an option is rated, such as once per order of a list.
    """
    batch: list[RerankRequest] = []
    pairs = 0
    for request in requests:
        more = len(request.options) * pairs_per_option
        if batch and pairs + more > pairs_at_most:
            yield batch
            batch, pairs = [], 0
        batch.append(request)
        pairs += more
    if batch:
        yield batch
