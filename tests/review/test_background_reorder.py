"""When the queue of a review is made anew."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from lmm_classifier.errors import RunError
from lmm_classifier.labelling.review_items import ReviewItem
from lmm_classifier.review.background_reorder import EVERY, BackgroundReorder


def settled(learning: BackgroundReorder) -> None:
    for thread in threading.enumerate():
        if thread.name == "order":
            thread.join(10)


def test_it_learns_what_was_said_and_what_was_taken_back() -> None:
    asked: list[dict[int, str | None]] = []

    def order(decided: Mapping[int, str | None]) -> tuple[ReviewItem, ...]:
        asked.append(dict(decided))
        return ()

    learning = BackgroundReorder(order, lambda _: None, {})
    few: dict[int, str | None] = dict.fromkeys(range(EVERY - 1), "rose")
    learning.heard(few)
    settled(learning)
    assert (learning.times, asked) == (0, [])
    group: dict[int, str | None] = dict.fromkeys(range(50), "rose")
    learning.heard(group)
    settled(learning)
    assert (learning.times, asked) == (1, [group])
    learning.heard({})  # undone
    settled(learning)
    assert (learning.times, asked) == (2, [group, {}])


def test_what_could_not_be_learned_is_tried_again() -> None:
    tries = []

    def order(decided: Mapping[int, str | None]) -> tuple[ReviewItem, ...]:
        tries.append(len(decided))
        if len(tries) == 1:
            raise RunError("a shard is damaged")
        return ()

    learning = BackgroundReorder(order, lambda _: None, {})
    for n in (EVERY, EVERY + 1):
        learning.heard(dict.fromkeys(range(n), None))
        settled(learning)
    assert (tries, learning.times) == ([EVERY, EVERY + 1], 1)
