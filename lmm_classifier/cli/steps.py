"""`run STEP PHOTO...`, `pipeline PHOTO...` and `steps`: everything one can do with a photo."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lmm_classifier.cli.output import first_lines
from lmm_classifier.corpus.corpus import SkippedFile
from lmm_classifier.text import printable

if TYPE_CHECKING:
    from lmm_classifier.pipeline import Pipeline

_Photos = Annotated[list[Path], typer.Argument(help="Photos.", readable=False)]
_BATCH_SIZE = 16


def run(
    step: Annotated[str, typer.Argument(help="Name of a step; `lmm-classifier steps` lists them.")],
    photos: _Photos,
    param: Annotated[
        list[str],
        typer.Option("--param", "-p", help="Option of the step, key=value or key.key=value; repeat."),
    ] = [],  # noqa: B006 -- typer copies it
    where: Annotated[
        list[str],
        typer.Option(
            "--where",
            "-w",
            help="Where to look, key=value: target (whole_image, prominent_person, prominent_face), "
            "face_context, prominence, padding, crop_policy, on_missing; repeat.",
        ),
    ] = [],  # noqa: B006 -- typer copies it
) -> int:
    """Run one step over photos; one JSON object per photo says what it found."""
    from lmm_classifier.config.pipeline import make_step
    from lmm_classifier.pipeline import Pipeline
    from lmm_classifier.regions import make_region_selector
    from lmm_classifier.yaml_settings import read_parameters

    place = make_region_selector(read_parameters(where))
    line = (*place.steps(), make_step(step, read_parameters(param)))
    return _tell(Pipeline(line, _BATCH_SIZE), photos)


def pipeline(
    photos: _Photos,
    config: Annotated[Path, typer.Option("--config", "-c", help="Settings with a `pipeline` list.")],
) -> int:
    """Run the steps of a settings file over photos; one JSON object per photo says what they found."""
    from lmm_classifier.config.pipeline import PipelineConfig

    return _tell(PipelineConfig.from_yaml(config).build(), photos)


def steps(
    as_json: Annotated[
        bool, typer.Option("--json", help="Names, parameters with types and ranges, as one JSON object.")
    ] = False,
) -> int:
    """List all steps, built-in and installed, with what they read, set and take."""
    from lmm_classifier.api.step_catalog import catalogue

    entries = catalogue()
    if as_json:
        typer.echo(json.dumps([entry.to_dict() for entry in entries]))
        return 0
    for entry in entries:
        typer.echo(f"{printable(entry.name)}: {printable(entry.summary)}")
        typer.echo(f"    reads {', '.join(entry.requires)}; sets {', '.join(entry.provides)}")
        for parameter in entry.parameters:
            typer.echo(f"    {parameter}")
    return 0


def _tell(line: Pipeline, photos: Sequence[Path]) -> int:
    from lmm_classifier.api.serialize import serialize_sample

    for step in line.steps:
        step.load()
    skipped: list[SkippedFile] = []
    for finished in line.run_files(photos):
        if isinstance(finished, SkippedFile):
            skipped.append(finished)
            body = {"source": finished.path, "error": finished.reason, "code": finished.code}
        else:
            body = serialize_sample(finished)
        sys.stdout.write(json.dumps(body, allow_nan=False) + "\n")
        sys.stdout.flush()
    first_lines("skipped: {}", [f"{s.path}: {s.reason} [{s.code}]" for s in skipped])
    if skipped and len(skipped) == len(photos):
        return 1
    return 2 if skipped else 0
