"""What commands share on their way to the terminal."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from lmm_classifier.logging_config import tell
from lmm_classifier.text import one_line

if TYPE_CHECKING:
    from lmm_classifier.storage.progress import OnProgress, Progress

_SHOWN = 10  # lines of one kind
_FIRST_RATE_S = 0.1  # seconds before which a rate says nothing


def note(text: str) -> None:
    """Tell the person something, on standard error."""
    tell(one_line(text))


def first_lines(template: str, lines: Sequence[str]) -> None:
    """Note the first of many lines of one kind, and how many there are more."""
    for line in lines[:_SHOWN]:
        note(template.format(line))
    if len(lines) > _SHOWN:
        note(template.format(f"... and {len(lines) - _SHOWN} more"))


def warn_of_unanswerable(labels: Sequence[str]) -> None:
    """One line for each configured label that can never be answered."""
    for label in labels:
        note(f"warning: label {label!r} has no image in the index, nor a text prior: it is never answered")


def help_without_command(context: typer.Context) -> None:
    """For the callback of a command group: show its help when no command was given."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit


@contextmanager
def progress(as_json: bool = False) -> Iterator[OnProgress]:
    """Say where things stand while the block runs: a bar on a terminal, or JSON lines for a machine."""
    if as_json:
        yield _JsonLines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[told]}"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Bar(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:

        def update(state: Progress) -> None:
            if not bar.tasks or bar.tasks[0].description != state.stage:
                for former in bar.task_ids:  # reset, it would keep the total of the last stage
                    bar.remove_task(former)
                bar.add_task(state.stage, total=None, rate="", told="")
            task = bar.task_ids[0]
            per_second = (state.seen - state.before) / max(bar.tasks[0].elapsed or 0, 1e-3)
            rate = f"{per_second:.0f}/s" if per_second >= 10 else f"{per_second:.1f}/s"
            bar.update(task, completed=state.seen, total=state.total, rate=rate, told=_told(state))

        yield update


def _told(state: Progress) -> str:
    if state.unknown is None:
        return f"{state.skipped} skipped"
    return f"{state.unknown / max(state.seen - state.skipped, 1):.0%} unknown, {state.skipped} skipped"


class _JsonLines:
    """At most one JSON object per second on standard error, and one at the end of each stage."""

    def __init__(self) -> None:
        self._stage = ""
        self._started = self._told = float("-inf")

    def __call__(self, state: Progress) -> None:
        now = time.monotonic()
        if state.stage != self._stage:
            self._stage, self._started, self._told = state.stage, now, float("-inf")
        if now - self._told < 1 and state.seen != state.total:
            return
        self._told = now
        seconds = now - self._started
        rate = (state.seen - state.before) / seconds if seconds > _FIRST_RATE_S else None
        left = (state.total - state.seen) / rate if rate and state.total is not None else None
        body = asdict(state) | {
            "per_second": rate and round(rate, 2),
            "seconds_left": left and round(left, 1),
        }
        sys.stderr.write(f"{json.dumps(body)}\n")
        sys.stderr.flush()
