"""`index build` and `index info`."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from lmm_classifier import registry
from lmm_classifier.cli.output import note, progress_bar
from lmm_classifier.text import printable

app = typer.Typer(help="Build an index from labelled photos, and look at one.", no_args_is_help=True)
SHOWN_SKIPS = 10


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
) -> int:
    """Turn a labelled corpus into an index. Files that cannot be read are skipped and listed."""
    from lmm_classifier.config import model_spec
    from lmm_classifier.indexing import index_corpus

    spec = model_spec(family=encoder, weights=weights, revision=revision, device=device, dtype=dtype)
    started = time.perf_counter()
    with progress_bar() as on_stage:
        report = index_corpus(
            root, output, encoder=spec, batch_size=batch_size, on_progress=lambda p: on_stage("indexing", p)
        )
    seconds = time.perf_counter() - started
    for warning in report.warnings:
        note(f"warning: {warning}")
    for skipped in report.skipped[:SHOWN_SKIPS]:
        note(f"skipped: {skipped.path}: {skipped.reason} [{skipped.code}]")
    if len(report.skipped) > SHOWN_SKIPS:
        note(f"... and {len(report.skipped) - SHOWN_SKIPS} more; all are listed by `index info --json`")
    typer.echo(
        f"{printable(str(output))}: {report.indexed} images of {len(report.labels)} labels in {seconds:.1f} s"
        + (f", {len(report.skipped)} files skipped" if report.skipped else "")
    )
    return 2 if report.skipped else 0


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
