"""`index audit`: what is suspicious in a labelled corpus."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lmm_classifier.cli.output import first_lines, note, progress
from lmm_classifier.text import printable

if TYPE_CHECKING:
    from lmm_classifier.audit.audit import Audit
    from lmm_classifier.index.search import VectorIndex

_PAGE = Path("audit.html")


def audit(
    index: Annotated[Path, typer.Argument(help="Index folder or .npz file.")],
    corpus_root: Annotated[
        Path | None,
        typer.Argument(help="Folder that the photos' paths start from, to show them on the page."),
    ] = None,
    encoder: Annotated[
        str,
        typer.Option(
            help="Encoder whose vectors are compared, if the index has several; the first if left out."
        ),
    ] = "",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help=f"HTML page to write; {_PAGE}, or none with --json."),
    ] = None,
    near: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=1,
            help="Cosine similarity from which photos are near-duplicates; by the index if left out.",
        ),
    ] = None,
    k: Annotated[int, typer.Option("--k", min=1, max=1000, help="Neighbours that vote on each label.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print all findings as one JSON object.")] = False,
) -> int:
    """Find copies, label conflicts, near-duplicates across labels, and labels the neighbours contradict.

    Needs the index alone; the photos only to show them. Exit code 2 when something was found.
    """
    from lmm_classifier.audit.audit import audit_index
    from lmm_classifier.audit.page import write_audit

    opened = _opened(index, encoder)
    with progress() as on_progress:
        found = audit_index(opened, k=k, near=near, on_progress=on_progress)
    page = output or (None if as_json else _PAGE)
    if page:
        write_audit(page, f"Audit of {index}", found, corpus_root)
    if as_json:
        typer.echo(json.dumps({"path": str(index), "encoder": asdict(opened.encoder), **asdict(found)}))
    else:
        _tell(found, index)
        typer.echo(printable(str(page)))
    return 2 if found.suspicious else 0


def _opened(path: Path, encoder: str) -> VectorIndex:
    from lmm_classifier.errors import ConfigError
    from lmm_classifier.index.search import encoders_of, open_index

    encoders = encoders_of(path)
    chosen = [contract for contract in encoders if encoder == contract.name] if encoder else encoders[:1]
    if len(chosen) != 1:
        names = ", ".join(contract.name for contract in encoders)
        raise ConfigError(f"{path} has the encoders {names}; {encoder!r} is not exactly one of them")
    return open_index(path, chosen[0])


def _tell(found: Audit, index: Path) -> None:
    """The first findings of each kind on standard error, the counts on standard output."""
    first_lines(
        "same content, different labels: {}",
        [
            f"{', '.join(f'{i.path} [{i.label}]' for i in group.images)}{_proposal(group.proposed)}"
            for group in found.conflicts
        ],
    )
    first_lines(
        "neighbours contradict: {}",
        [
            f"{d.image.path} [{d.image.label}]: {d.proposed_share:.0%} of the vote for {d.proposed}"
            for d in found.disagreements
        ],
    )
    first_lines(
        "nearly the same, different labels: {}",
        [
            f"{', '.join(f'{i.path} [{i.label}]' for i in pair.images)}, similarity {pair.similarity:.3f}"
            f"{_proposal(pair.proposed)}"
            for pair in found.near_duplicates
        ],
    )
    first_lines(
        "exact copies: {}", [", ".join(image.path for image in group.images) for group in found.duplicates]
    )
    if found.crowded:
        note(f"warning: {found.crowded} images have so many copies that findings may be missing")
    counts = [
        f"{len(found.conflicts)} label conflicts",
        f"{len(found.disagreements)} labels contradicted by the neighbours",
        f"{len(found.near_duplicates)} near-duplicates across labels",
        f"{len(found.duplicates)} groups of copies",
    ]
    typer.echo(
        f"{printable(str(index))}: {found.images} images of {found.labels} labels: {', '.join(counts)}"
    )


def _proposal(label: str | None) -> str:
    return "" if label is None else f"; proposed: {label}"
