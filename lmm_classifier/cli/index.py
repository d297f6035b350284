"""`index build` and `index info`."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lmm_classifier import registry
from lmm_classifier.cli.output import help_without_command, note, progress_bar
from lmm_classifier.text import printable

if TYPE_CHECKING:
    from lmm_classifier.index.build import BuildReport

app = typer.Typer()
SHOWN = 10  # lines of one kind


@app.callback(invoke_without_command=True)
def group(context: typer.Context) -> None:
    """Build an index from labelled photos, and look at one."""
    help_without_command(context)


@app.command()
def build(
    root: Annotated[
        Path, typer.Argument(help="Folder root/<label>/**, or a .csv or .jsonl with path,label.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Index folder, or a file ending in .npz.")],
    batch_size: Annotated[int, typer.Option(min=1, max=4096, help="Images per model call.")] = 32,
    encoder: Annotated[
        str, typer.Option(help=f"Encoder family: {', '.join(registry.names('encoder'))}.")
    ] = "siglip",
    weights: Annotated[
        str, typer.Option(help="Hub id, ./folder, ./file or shipped:NAME; default of the family.")
    ] = "",
    revision: Annotated[str, typer.Option(help="Branch, tag or commit on the hub.")] = "main",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads that decode; one per processor by default.")
    ] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Start over instead of synchronising.")] = False,
) -> int:
    """Turn a labelled corpus into an index, or bring an index up to date with its corpus.

    Only new and changed photos are encoded. An interrupted build goes on where it was. Files that cannot
    be read are skipped and listed.
    """
    from lmm_classifier.config import model_spec
    from lmm_classifier.indexing import index_corpus

    spec = model_spec(family=encoder, weights=weights, revision=revision, device=device, dtype=dtype)
    started = time.perf_counter()
    with progress_bar() as on_stage:
        report = index_corpus(
            root,
            output,
            encoder=spec,
            batch_size=batch_size,
            workers=workers,
            rebuild=rebuild,
            on_progress=lambda p: on_stage("indexing", p),
        )
    _tell(report)
    typer.echo(
        f"{printable(str(output))}: {report.indexed} images of {len(report.labels)} labels, "
        f"{report.encoded} of them encoded now, in {time.perf_counter() - started:.1f} s"
        + (f", {len(report.skipped)} files skipped" if report.skipped else "")
    )
    return 2 if report.skipped or report.changed else 0


def _tell(report: BuildReport) -> None:
    """What a person should know of a build beside that it ended."""
    for warning in report.warnings:
        note(f"warning: {warning}")
    if report.duplicates:
        note(f"warning: {report.duplicates} images are exact copies of others")
    _first("warning: same photo under different labels: {}", [", ".join(c) for c in report.conflicts])
    _first("changed while the build ran, build again: {}", report.changed)
    _first("skipped: {}", [f"{s.path}: {s.reason} [{s.code}]" for s in report.skipped])


def _first(template: str, lines: Sequence[str]) -> None:
    for line in lines[:SHOWN]:
        note(template.format(line))
    if len(lines) > SHOWN:
        note(template.format(f"... and {len(lines) - SHOWN} more"))


@app.command()
def info(
    path: Annotated[Path, typer.Argument(help="Index folder or .npz file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
) -> int:
    """Verify an index and say what is in it."""
    from dataclasses import asdict

    from lmm_classifier.index.calibration import read_calibration
    from lmm_classifier.index.manifest import read_manifest
    from lmm_classifier.index.search import describe_encoder, open_index
    from lmm_classifier.index.shards import read_failures

    index = open_index(path)
    folder = path if path.is_dir() else None
    calibration = read_calibration(folder) if folder else None
    skipped = read_failures(folder, read_manifest(folder).files) if folder else ()
    counts = dict(sorted(Counter(record.label for record in index.records).items()))
    if as_json:
        body = {
            "path": str(path),
            "images": len(index),
            "labels": counts,
            "encoder": asdict(index.encoder) | {"fingerprint": index.encoder.fingerprint},
            "calibration": asdict(calibration) if calibration else None,
            "skipped": skipped,
        }
        typer.echo(json.dumps(body))
        return 0
    typer.echo(f"{printable(str(path))}: {len(index)} images, {len(counts)} labels, every file verified")
    typer.echo(f"encoder: {describe_encoder(index.encoder)}")
    if calibration:
        typer.echo(
            f"calibration: confidence {calibration.confidence_threshold:.3f}, "
            f"open set {calibration.open_set_threshold:.3f}, "
            f"fitted on {calibration.n_images} images, {calibration.created}"
        )
    else:
        typer.echo("calibration: none")
    for label, count in counts.items():
        typer.echo(f"{count:8d}  {printable(label)}")
    for code, count in sorted(Counter(item["code"] for item in skipped).items()):
        typer.echo(f"{count:8d}  skipped: {code}")
    return 0
