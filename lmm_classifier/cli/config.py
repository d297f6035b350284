"""`config check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmm_classifier.cli.output import help_without_command, warn_of_unanswerable
from lmm_classifier.text import printable

app = typer.Typer()


@app.callback(invoke_without_command=True)
def group(context: typer.Context) -> None:
    """Check settings."""
    help_without_command(context)


@app.command()
def check(path: Annotated[Path, typer.Argument(help="YAML file.")]) -> int:
    """Check a settings file and its index, opening no model, and print the settings in force."""
    from lmm_classifier.api.hybrid_classifier import HybridClassifier

    classifier = HybridClassifier.from_yaml(path)
    classifier.check_index()
    typer.echo(f"# {printable(str(path))}: " + " -> ".join(step.name for step in classifier.pipeline.steps))
    if cut := classifier.thresholds:
        typer.echo(f"# thresholds: {cut.describe()} ({cut.source})")
    typer.echo(classifier.config.to_yaml(), nl=False)
    unanswerable = classifier.unanswerable_labels
    warn_of_unanswerable(unanswerable)
    return 2 if unanswerable else 0
