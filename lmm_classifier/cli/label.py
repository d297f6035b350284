"""`label`: labelling runs, and what comes of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lmm_classifier.cli.output import first_lines, note, progress, warn_of_unanswerable
from lmm_classifier.text import printable

if TYPE_CHECKING:
    from lmm_classifier.labelling.run import Labelled


def run(
    source: Annotated[
        Path, typer.Argument(help="Folder of photos, or a .csv or .jsonl with a column `path`.", readable=False)
    ],
    config: Annotated[Path, typer.Option("--config", "-c", help="Settings, such as config/default.yaml.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run, such as runs/holiday.")],
    restart: Annotated[bool, typer.Option(help="Begin the run anew.")] = False,
    json_progress: Annotated[
        bool, typer.Option("--json-progress", help="Progress as JSON lines on standard error.")
    ] = False,
) -> int:
    """Label the photos of a folder or table."""
    from lmm_classifier.classifier import HybridClassifier
    from lmm_classifier.labelling.run import label_photos

    classifier = HybridClassifier.from_yaml(config)
    with progress(json_progress) as on_progress:
        done = label_photos(source, classifier, output, restart=restart, on_progress=on_progress)
    print(done.run.facts.counts)
    return 0
