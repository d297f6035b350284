"""`label apply`: what was reviewed becomes a part of the corpus."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lmm_classifier.cli.output import first_lines, note, progress
from lmm_classifier.errors import ConfigError
from lmm_classifier.text import printable

if TYPE_CHECKING:
    from lmm_classifier.labelling.agreed_labels import AgreedLabels
    from lmm_classifier.labelling.export import Way
    from lmm_classifier.labelling.run_store import LabellingRun


def apply(
    run: Annotated[Path, typer.Argument(help="Folder of a labelling run.")],
    tree: Annotated[
        Path | None, typer.Option(help="Instead of the index: a folder per label below this one.")
    ] = None,
    imagefolder: Annotated[
        Path | None, typer.Option(help="Instead: a folder that Hugging Face's `imagefolder` reads.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Instead: a table of path, label and digest.")] = None,
    link: Annotated[
        bool, typer.Option("--link/--copy", help="Make hard links in the folder instead of copies.")
    ] = False,
    unreviewed: Annotated[
        bool,
        typer.Option(
            "--unreviewed", help="Include photos that nobody reviewed and the classifier is sure of."
        ),
    ] = False,
) -> int:
    """Add the reviewed photos to the run's index, or write them elsewhere; nothing there is replaced.

    Photos that reviewers give different labels, that have changed or are gone, are listed and left out:
    exit code 2.
    """
    from lmm_classifier.labelling.agreed_labels import accepted_photos
    from lmm_classifier.labelling.run_store import LabellingRun

    elsewhere = [target for target in (tree, imagefolder, csv) if target is not None]
    if len(elsewhere) > 1:
        raise ConfigError("give one of --tree, --imagefolder and --csv")
    opened = LabellingRun(run)
    found = accepted_photos(opened, unreviewed=unreviewed)
    first_lines("reviewers disagree: {}", found.conflicts)
    first_lines("left out: {}", [f"{photo.path}: {photo.reason}" for photo in found.gone])
    if not found.items:
        raise ConfigError(
            f"nothing of {run} can be taken over: {found.rejected} photos were rejected, "
            f"{len(found.conflicts)} are in conflict, {len(found.gone)} gone or changed; for the others see "
            "`lmm-classifier review`"
        )
    if not elsewhere or Path(opened.manifest.index).is_dir():  # a table can be written without the index
        _tell_of_drift(opened)  # before the index becomes another
    if not elsewhere:
        _to_index(found, opened)
    else:
        _elsewhere(found, tree, imagefolder, csv, "link" if link else "copy")
    if found.rejected:
        note(f"{found.rejected} photos were rejected")
    return 2 if found.conflicts or found.gone else 0


def _tell_of_drift(run: LabellingRun) -> None:
    from lmm_classifier.labelling.run_drift import drift_of
    from lmm_classifier.labelling.run_manifest import classifier_of

    drift = drift_of(run, classifier_of(run.manifest))
    if drift is not None and drift.recalibrate:
        note(drift.advice)


def _to_index(found: AgreedLabels, run: LabellingRun) -> None:
    from lmm_classifier.api.build_index import add_corpus
    from lmm_classifier.corpus.corpus import Corpus

    index, cache_dir = Path(run.manifest.index), run.manifest.settings.get("cache_dir")
    corpus = Corpus(found.items, (), empty_labels=(), root=run.root)
    with progress() as on_progress:
        report = add_corpus(corpus, index, cache_dir and Path(cache_dir), on_progress)
    for warning in report.warnings:
        note(f"warning: {warning}")
    typer.echo(
        f"{printable(str(index))}: {report.indexed} images of {len(report.labels)} labels, "
        f"{len(found.items)} of them of this run, {report.encoded} encoded now"
    )
    note("they stay until `index build` makes the index of its corpus again: put them there too, with --tree")


def _elsewhere(
    found: AgreedLabels, tree: Path | None, imagefolder: Path | None, csv: Path | None, way: Way
) -> None:
    from lmm_classifier.labelling.export import write_csv, write_imagefolder, write_tree

    if csv is not None:
        write_csv(found, csv)
        typer.echo(f"{printable(str(csv))}: {len(found.items)} photos")
    for folder, write in ((tree, write_tree), (imagefolder, write_imagefolder)):
        if folder is not None:
            added = write(found, folder, way)
            typer.echo(
                f"{printable(str(folder))}: {added} photos added, {len(found.items) - added} were there"
            )
