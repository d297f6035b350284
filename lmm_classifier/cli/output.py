"""What commands share on their way to the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from lmm_classifier.text import one_line

if TYPE_CHECKING:
    from lmm_classifier.index.build import OnStage, Progress


def note(text: str) -> None:
    """Tell the person something, on standard error."""
    sys.stderr.write(f"{one_line(text)}\n")


def help_without_command(context: typer.Context) -> None:
    """For the callback of a command group: show its help when no command was given."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit


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
                per_second = state.seen / max(bar.tasks[0].elapsed or 0, 1e-3)
                rate = f"{per_second:.0f}/s" if per_second >= 10 else f"{per_second:.1f}/s"
                bar.update(task, completed=state.seen, total=state.total, skipped=state.skipped, rate=rate)

        yield update
