"""`experiment run | compare`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lmm_classifier.cli.output import first_lines, help_without_command, note, progress
from lmm_classifier.text import printable

if TYPE_CHECKING:
    from lmm_classifier.experiments.compare import Comparison

_RUNS = Path("runs")
_PIPED_WIDTH = 240  # columns of the table where nobody's terminal limits them
app = typer.Typer()


@app.callback(invoke_without_command=True)
def group(context: typer.Context) -> None:
    """Compare settings: run a grid of them on the same photos."""
    help_without_command(context)


@app.command()
def run(
    path: Annotated[Path, typer.Argument(metavar="EXPERIMENT", help="YAML file, as in config/experiments.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for all runs; runs/NAME if left out.")
    ] = None,
    json_progress: Annotated[
        bool, typer.Option("--json-progress", help="JSON lines on standard error instead of a bar.")
    ] = False,
) -> int:
    """Run every combination of a grid with every seed, a folder each.

    Run again after an interruption, only what is not finished is done. A run that fails is recorded with its
    reason and stops no other; exit code 2 then.
    """
    from lmm_classifier.experiments.run import run_experiment
    from lmm_classifier.experiments.spec import Experiment

    output = output or _RUNS / path.stem
    experiment = Experiment.from_yaml(path)
    with progress(json_progress) as on_progress:
        outcome = run_experiment(experiment, path.absolute().parent, output, on_progress)
    before = f", {outcome.before} were finished before" if outcome.before else ""
    failed = f", {len(outcome.failed)} failed" if outcome.failed else ""
    typer.echo(printable(f"{output}: {outcome.done} runs finished{before}{failed}"))
    first_lines("failed: {}", [f"{name}: {reason}" for name, reason in outcome.failed.items()])
    first_lines(
        "degraded: {}",
        [f"{name}: {n} answers, the reranker could not be asked" for name, n in outcome.degraded.items()],
    )
    left_out = [f"{file.path}: {file.reason} [{file.code}]" for file in outcome.skipped.values()]
    first_lines("skipped: {}", left_out)
    return 2 if outcome.failed or outcome.degraded or left_out else 0


@app.command()
def compare(
    folder: Annotated[Path, typer.Argument(help="Output of `experiment run`.")],
    sort: Annotated[
        str | None, typer.Option(help="Figure to sort by, as compare.json names it; OSCR if left out.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what compare.json holds.")] = False,
) -> int:
    """Show the runs of an experiment side by side: mean and spread over the seeds of each combination.

    Writes compare.json, compare.csv and compare.html into the folder. Exit code 2 when runs failed or are
    missing.
    """
    from lmm_classifier.experiments.compare import compare as compared
    from lmm_classifier.experiments.page import write_comparison

    found = compared(folder, sort)
    written = write_comparison(folder, found)
    if as_json:
        typer.echo(json.dumps(found.to_dict()))
    else:
        _show(found)
        for path in written:
            typer.echo(printable(str(path)))
    first_lines("failed: {}", [f"{name}: {reason}" for name, reason in found.failed.items()])
    if found.missing:
        note(f"{len(found.missing)} runs are not finished: run the experiment again")
    return 2 if found.failed or found.missing else 0


def _show(found: Comparison) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = found.table()
    shown = Table(*table.columns, title=table.title)
    for row in table.rows:
        shown.add_row(*(Text(printable(cell)) for cell in row))
    Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH).print(shown)
    typer.echo(found.legend)
