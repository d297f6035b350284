"""`label simulate`: a labelled folder as if it were not, with its labels as the reviewer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmm_classifier.cli.output import progress
from lmm_classifier.text import printable


def simulate(
    source: Annotated[
        Path, typer.Argument(help="Labelled photos: a folder per label, or a .csv or .jsonl table.")
    ],
    config: Annotated[Path, typer.Option("--config", "-c", help="Settings, such as config/default.yaml.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run, such as runs/trial.")],
    looks: Annotated[int, typer.Option(min=1, help="Photos that are looked at.")] = 100,
    orders: Annotated[int, typer.Option(min=1, help="Random orders to compare with.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Of the random orders.")] = 0,
    restart: Annotated[bool, typer.Option("--restart", help="Begin the run anew.")] = False,
) -> int:
    """Say what a review would bring: accuracy against photos looked at, in the queue's order and at random.

    The photos are labelled as by `label run`, without their labels, which answer in a reviewer's place.
    Labels that the index lacks are what it should learn.
    """
    from lmm_classifier.api.hybrid_classifier import HybridClassifier
    from lmm_classifier.labelling.run import label_photos
    from lmm_classifier.labelling.simulation.report import check_source, simulate_review, write_simulation
    from lmm_classifier.storage.progress import Progress

    classifier = HybridClassifier.from_yaml(config)
    check_source(source, classifier)
    with progress() as on_progress:
        run = label_photos(source, classifier, output, restart=restart, on_progress=on_progress).run

        def tell(done: int) -> None:
            on_progress(Progress("reviewing", done, orders + 1))

        found = simulate_review(run, source, looks=looks, orders=orders, seed=seed, tell=tell)
        files = write_simulation(run, found)
    needed = "" if found.looks is None else f"; as good as random order after {found.looks:.0f}"
    typer.echo(
        f"{found.photos} photos, accuracy {found.queue.accuracy[0]:.1%} before, {found.reached:.1%} after "
        f"{found.queue.looked_at[-1]} looks in the queue's order{needed}"
    )
    for file in files:
        typer.echo(printable(str(file)))
    return 0
