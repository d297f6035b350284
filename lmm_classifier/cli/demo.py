"""`demo`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lmm_classifier.cli.output import progress
from lmm_classifier.text import printable


def run(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for corpus, index, settings, summary and report.")
    ] = Path("indexes/demo"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")] = False,
) -> int:
    """Try everything on handwritten digits with the two shipped models; needs no download."""
    from rich.console import Console
    from rich.table import Table

    from lmm_classifier.demo import run_demo

    with progress() as on_progress:
        summary = run_demo(output, on_progress)
    if as_json:
        typer.echo(json.dumps(summary.to_dict()))
        return 0
    table = Table("handwritten digits", "measured", title="two of ten digits were never seen before")
    for name, value in summary.figures().items():
        table.add_row(name, value)
    Console().print(table)
    for name in ("report.html", "summary.json", "config.yaml"):
        typer.echo(f"{printable(str(output / name))}")
    return 0
