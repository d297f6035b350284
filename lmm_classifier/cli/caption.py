"""`caption FOLDER`: a text file beside each photo."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lmm_classifier import registry
from lmm_classifier.cli.output import note, progress
from lmm_classifier.text import printable

if TYPE_CHECKING:
    from lmm_classifier.captioning.source import CaptionSource

_MODEL = "blip"


def run(
    folder: Annotated[Path, typer.Argument(help="Folder of photos, all below it included.", readable=False)],
    model: Annotated[
        str | None,
        typer.Option(
            help=f"NAME or NAME=WEIGHTS, {_MODEL} if left out. {', '.join(registry.names('captioner'))}.",
            show_default=False,
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            help="URL of a running service that writes the captions, instead of a model on this machine."
        ),
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the service's key; left out, LMM_CLASSIFIER_API_KEY in the environment."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Overwrite captions that are there.")] = False,
    max_length: Annotated[
        int, typer.Option(min=1, max=1024, help="Maximum number of tokens in a caption.")
    ] = 50,
    concurrency: Annotated[
        int, typer.Option(min=1, max=256, help="Number of simultaneous requests to the service.")
    ] = 4,
    json_progress: Annotated[
        bool, typer.Option("--json-progress", help="Progress as JSON lines on standard error.")
    ] = False,
) -> int:
    """Describe each photo below a folder in a text file beside it: photo.jpg in photo.txt.

    Photos that have one already are left out. Those of one stem keep their full names: a.jpg.txt, a.png.txt.
    """
    from lmm_classifier.captioning.folder import caption_folder

    source = _source(model, server, key_file, max_length, concurrency)
    with progress(json_progress) as on_progress:
        report = caption_folder(
            folder,
            source,
            force=force,
            on_failure=lambda photo, reason: note(f"failed: {photo}: {reason}"),
            on_progress=on_progress,
        )
    if report.renamed:
        caption = next(iter(report.renamed.values()))
        note(f"{len(report.renamed)} photos have namesakes: their captions keep the full name, as {caption}")
    done = f"{report.written} captions written, {report.present} already there, {report.failed} failed"
    typer.echo(f"{printable(str(folder))}: {done}")
    if not report.failed:
        return 0
    return 2 if report.written or report.present else 1


def _source(
    model: str | None, server: str | None, key_file: Path | None, max_length: int, concurrency: int
) -> CaptionSource:
    """Who describes the photos."""
    from lmm_classifier.captioning.local import LocalModel
    from lmm_classifier.captioning.server import KEY, Server, read_key
    from lmm_classifier.errors import ConfigError

    if server is None:
        if key_file is not None:
            raise ConfigError("--key-file is the key of a service; add --server URL")
        return LocalModel.named(model or _MODEL, max_length)
    if model is not None:
        raise ConfigError("the service chose its model itself; leave --model or --server out")
    key = os.environ.get(KEY, "") if key_file is None else read_key(key_file)
    return Server(server, key, max_length, concurrency)
