"""`index info | verify`: looking at an index without changing it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmm_classifier.cli.output import note
from lmm_classifier.text import printable

if TYPE_CHECKING:
    from lmm_classifier.index.search import VectorIndex

Index = Annotated[Path, typer.Argument(help="Index folder or .npz file.")]


def info(
    path: Index,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
) -> int:
    """Verify an index and say what is in it."""
    from lmm_classifier.index.calibration import read_calibration
    from lmm_classifier.index.manifest import read_manifest
    from lmm_classifier.index.publish import read_latency
    from lmm_classifier.index.search import describe_encoder, encoders_of, open_index
    from lmm_classifier.index.shards import read_failures

    spaces = [open_index(path, encoder) for encoder in encoders_of(path)]
    folder = path if path.is_dir() else None
    fitted = read_calibration(folder) if folder else None
    calibration = fitted.calibration if fitted else None
    skipped = read_failures(folder, read_manifest(folder).files) if folder else ()
    latency = read_latency(folder) if folder else {}
    counts = spaces[0].records.counts()
    if as_json:
        body = {
            "path": str(path),
            "images": len(spaces[0]),
            "labels": counts,
            "encoders": [_space(space, latency) for space in spaces],
            "calibration": asdict(calibration) if calibration else None,
            "skipped": [asdict(item) for item in skipped],
        }
        typer.echo(json.dumps(body))
        return 0
    typer.echo(f"{printable(str(path))}: {len(spaces[0])} images, {len(counts)} labels, every file verified")
    for space in spaces:
        typer.echo(f"encoder: {describe_encoder(space.encoder)}")
        typer.echo(f"search: {_search(space, latency)}")
    if calibration:
        typer.echo(
            f"calibration: {printable(calibration.target)}; fitted on "
            f"{calibration.n_held_out or calibration.n_images} images, {calibration.created}"
        )
    else:
        typer.echo("calibration: none")
    for label, count in counts.items():
        typer.echo(f"{count:8d}  {printable(label)}")
    for code, count in sorted(Counter(item.code for item in skipped).items()):
        typer.echo(f"{count:8d}  skipped: {code}")
    return 0


def verify(path: Annotated[Path, typer.Argument(help="Index folder.")]) -> int:
    """Read every byte of an index and name each file that is not what it was."""
    from lmm_classifier.index.manifest import read_manifest
    from lmm_classifier.index.verify import problems_of

    problems = problems_of(path)
    for problem in problems:
        note(f"error: {problem}")
    if problems:
        return 1
    manifest = read_manifest(path)
    size = sum(record.size for record in manifest.files.values())
    typer.echo(
        f"{printable(str(path))}: {manifest.count} images, {len(manifest.files)} files, "
        f"{size / 2**20:.1f} MiB, all as they were written"
    )
    return 0


def _space(space: VectorIndex, latency: dict[str, float]) -> dict[str, Any]:
    fingerprint = space.encoder.fingerprint
    search = asdict(space.operating_point) | {"milliseconds_per_query": latency.get(fingerprint)}
    return asdict(space.encoder) | {"fingerprint": fingerprint, "search": search}


def _search(space: VectorIndex, latency: dict[str, float]) -> str:
    point = space.operating_point
    if not point.queries:
        return "exact"
    time = latency.get(space.encoder.fingerprint)
    return (
        f"{point.factory} {point.parameters}, refined x {point.refine}: recall@{point.k} {point.recall:.4f}, "
        f"label agreement {point.label_agreement:.4f} on {point.queries} held-out queries, "
        f"{point.bytes_per_vector:.0f} bytes per vector" + (f", {time:.2f} ms per query" if time else "")
    )
