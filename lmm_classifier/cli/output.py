"""What commands share on their way to the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lmm_classifier.text import one_line

if TYPE_CHECKING:
    from lmm_classifier.index.build import Progress

    OnStage = Callable[[str, Progress | None], None]


def note(text: str) -> None:
    """Tell the person something, on standard error."""
    sys.stderr.write(f"{one_line(text)}\n")


@contextmanager
def progress_bar() -> Iterator[OnStage]:
    """Show stage, rate, skipped files and time left while the block runs; silent when not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[skipped]} skipped"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Bar(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=None, rate="", skipped=0)

        def update(stage: str, state: Progress | None) -> None:
            if bar.tasks[0].description != stage:
                bar.reset(task, description=stage, total=None, rate="", skipped=0)
            if state:
                rate = f"{bar.tasks[0].speed:.0f}/s" if bar.tasks[0].speed else ""
                bar.update(task, completed=state.seen, total=state.total, skipped=state.skipped, rate=rate)

        yield update
