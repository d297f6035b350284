"""`label propose`: groups of unknown photos that may deserve a label."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lmm_classifier import registry
from lmm_classifier.cli.output import note
from lmm_classifier.text import printable

if TYPE_CHECKING:
    from lmm_classifier.labelling.cluster_store import Group
    from lmm_classifier.labelling.run_store import LabellingRun


def propose(
    run: Annotated[Path, typer.Argument(help="Folder of a labelling run.")],
    smallest: Annotated[int, typer.Option(min=2, help="Photos of a group, at least.")] = 5,
    captioner: Annotated[
        str | None,
        typer.Option(
            help="Caption the representatives of each group with this model, NAME or NAME=WEIGHTS: "
            f"{', '.join(registry.names('captioner'))}."
        ),
    ] = None,
) -> int:
    """Gather the unknown photos of a run into groups that are alike, in proposals.json; `review` shows them.

    Photos that are like no other, or like too few, are in none.
    """
    from lmm_classifier.labelling.cluster_store import captioned, propose_groups, write_groups
    from lmm_classifier.labelling.run_store import LabellingRun

    opened = LabellingRun(run)
    groups = propose_groups(opened, smallest)
    if captioner is not None:
        from lmm_classifier.captioning.local import LocalModel

        groups = captioned(opened, groups, LocalModel.named(captioner, 50))
    path = write_groups(opened, groups)
    _tell(opened, groups)
    typer.echo(printable(str(path)))
    return 0


def _tell(run: LabellingRun, groups: Sequence[Group]) -> None:
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    from lmm_classifier.types import UNKNOWN

    labels = run.columns("label")["label"].to_pylist()
    unknown, grouped = labels.count(UNKNOWN), sum(len(group.members) for group in groups)
    if not groups:
        note(f"{unknown} unknown photos, and no group of them that is alike")
        return
    said = any(group.captions for group in groups)
    table = Table("group", "photos", "cohesion", "nearest labels", Column("such as", overflow="fold"))
    if said:
        table.add_column("looks like", overflow="fold")
    for number, group in enumerate(groups, start=1):
        near = ", ".join(f"{label} {cosine:.2f}" for label, cosine in group.nearest)
        shown = ", ".join(run.row(row).path for row in group.representatives[:2])
        cells = [str(number), str(len(group.members)), f"{group.cohesion:.2f}", near, shown]
        table.add_row(*(Text(printable(cell)) for cell in [*cells, *group.captions[:1]]))
    Console().print(table)
    typer.echo(f"{grouped} of {unknown} unknown photos in {len(groups)} groups")
