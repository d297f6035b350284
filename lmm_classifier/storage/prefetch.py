"""Work on files in threads, a bounded number ahead of who takes the results, which come in order."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
_R = TypeVar("_R")


def prefetch_map(
    work: Callable[[T], _R],
    tasks: Iterable[T],
    workers: int,
    ahead: int,
    stop: threading.Event | None = None,
) -> Generator[_R, None, None]:
    """Do the tasks in threads and yield the results in the tasks' order.

    Args:
        work: what to do; an exception of it is raised where its result would be yielded.
        tasks: taken only as needed.
        workers: threads.
        ahead: at most so many tasks are begun or done and not yet yielded.
        stop: set when no result is wanted any more, before what has been begun is waited for.
    """
    waiting: deque[Future[_R]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        try:
            for task in tasks:
                waiting.append(pool.submit(work, task))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            if stop is not None:
                stop.set()
            for future in waiting:
                future.cancel()
