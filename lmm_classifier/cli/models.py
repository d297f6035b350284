"""`models list | fetch | verify | where`: checkpoints on this machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmm_classifier.cli.output import help_without_command, note
from lmm_classifier.text import printable

if TYPE_CHECKING:
    from lmm_classifier.models.runtime.checkpoint_cache import Checkpoint

app = typer.Typer()

_Embed = Annotated[bool, typer.Option("--embed", help="The defaults of the encoders.")]
_Rerank = Annotated[bool, typer.Option("--rerank", help="The default of the reranker.")]
_Detect = Annotated[bool, typer.Option("--detect", help="The default of the object detector.")]
_Segment = Annotated[bool, typer.Option("--segment", help="The defaults of the segmenters.")]
_Classify = Annotated[bool, typer.Option("--classify", help="The default of the step `label`.")]
_Caption = Annotated[bool, typer.Option("--caption", help="The default of the step `caption`.")]
_Config = Annotated[
    Path | None, typer.Option("--config", "-c", help="What these settings use, instead of the defaults.")
]
_CacheDir = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the checkpoints; if left out, that of the settings, or the cache of huggingface_hub."
    ),
]


@app.callback(invoke_without_command=True)
def group(context: typer.Context) -> None:
    """List, fetch and verify the checkpoints that steps use. None is loaded into memory."""
    help_without_command(context)


@app.command("list")
def list_(
    embed: _Embed = False,
    rerank: _Rerank = False,
    detect: _Detect = False,
    segment: _Segment = False,
    classify: _Classify = False,
    caption: _Caption = False,
    config: _Config = None,
    cache_dir: _CacheDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per checkpoint.")] = False,
) -> int:
    """List checkpoints with licence, commit and size, and whether they are on this machine."""
    for checkpoint in _wanted(config, (embed, rerank, detect, segment, classify, caption), cache_dir):
        found = _described(checkpoint)
        if as_json:
            typer.echo(json.dumps(found))
            continue
        here = f"{found['mib']:.1f} MiB at {found['commit']}" if found["commit"] else "not on this machine"
        if missing := found["missing"]:
            here += f", {_incomplete(missing)}"
        licence = found["licence"] or "licence: see its model card"
        typer.echo(printable(f"{checkpoint.family}: {checkpoint.hub_id} ({licence}), {here}"))
    return 0


@app.command()
def fetch(
    embed: _Embed = False,
    rerank: _Rerank = False,
    detect: _Detect = False,
    segment: _Segment = False,
    classify: _Classify = False,
    caption: _Caption = False,
    config: _Config = None,
    cache_dir: _CacheDir = None,
) -> int:
    """Download what is missing of checkpoints; a connection that breaks is taken up where it was."""
    from lmm_classifier.models.runtime.checkpoint_cache import fetch as fetched

    for checkpoint in _wanted(config, (embed, rerank, detect, segment, classify, caption), cache_dir):
        folder = fetched(checkpoint)
        typer.echo(printable(f"{checkpoint.hub_id}: revision {folder.name} in {folder}"))
    return 0


@app.command()
def verify(
    embed: _Embed = False,
    rerank: _Rerank = False,
    detect: _Detect = False,
    segment: _Segment = False,
    classify: _Classify = False,
    caption: _Caption = False,
    config: _Config = None,
    cache_dir: _CacheDir = None,
) -> int:
    """Compare every file of the checkpoints on this machine with the digest it is filed under.

    Exit code 2 when one is not on this machine, or was not downloaded to its end.
    """
    from lmm_classifier.models.runtime.checkpoint_cache import problems_of

    damaged = absent = 0
    for checkpoint in _wanted(config, (embed, rerank, detect, segment, classify, caption), cache_dir):
        folder = checkpoint.folder()
        if folder is None:
            absent += 1
            typer.echo(printable(f"{checkpoint.hub_id}: not on this machine"))
            continue
        problems = list(problems_of(folder))
        damaged += len(problems)
        for problem in problems:
            note(f"error: {problem}")
        if missing := checkpoint.missing():
            absent += 1
            typer.echo(printable(f"{checkpoint.hub_id}: {_incomplete(missing)}"))
        elif not problems:
            typer.echo(printable(f"{checkpoint.hub_id}: every file is as the hub has it"))
    return 1 if damaged else 2 if absent else 0


@app.command()
def where(config: _Config = None, cache_dir: _CacheDir = None) -> int:
    """Print the folders that checkpoints are kept in."""
    from lmm_classifier.models.runtime.checkpoint_cache import CACHE, SHIPPED

    folders = {each.cache_dir for each in _used_by(config)} if config and not cache_dir else {cache_dir}
    for folder in sorted(filter(None, folders)):
        typer.echo(printable(f"hub: {folder.expanduser().absolute()}"))
    if None in folders or not folders:
        typer.echo(f"hub: {CACHE} (set HF_HUB_CACHE or HF_HOME to move it)")
    typer.echo(f"shipped: {SHIPPED}")
    return 0


def _incomplete(missing: Sequence[str]) -> str:
    files = "1 file is" if len(missing) == 1 else f"{len(missing)} files are"
    return f"incomplete: {files} missing, such as {missing[0]}; `models fetch` goes on with it"


def _wanted(config: Path | None, asked: Sequence[bool], cache_dir: Path | None) -> tuple[Checkpoint, ...]:
    """What settings use, else the defaults of the tasks asked for, in the order of TASKS."""
    from dataclasses import replace

    from lmm_classifier.errors import ConfigError
    from lmm_classifier.models.runtime.checkpoint_cache import defaults
    from lmm_classifier.models.runtime.default_checkpoints import TASKS

    chosen = [task for task, wanted in zip(TASKS, asked, strict=True) if wanted]
    if config is None:
        return tuple(replace(each, cache_dir=cache_dir) for each in defaults(chosen))
    if chosen:
        raise ConfigError(f"--config says which models; leave --{chosen[0]} out")
    return tuple(replace(each, cache_dir=cache_dir or each.cache_dir) for each in _used_by(config))


def _used_by(config: Path) -> tuple[Checkpoint, ...]:
    from lmm_classifier.config.pipeline import PipelineConfig
    from lmm_classifier.models.runtime.checkpoint_cache import wanted_by

    steps = PipelineConfig.from_yaml(config).steps()
    return wanted_by(spec for step in steps for spec in step.models())


def _described(checkpoint: Checkpoint) -> dict[str, Any]:
    from dataclasses import asdict

    from lmm_classifier.models.runtime.checkpoint_cache import size_of

    folder = checkpoint.folder()
    size = size_of(folder) / 2**20 if folder else None
    where = str(checkpoint.cache_dir) if checkpoint.cache_dir else None
    return asdict(checkpoint) | {
        "commit": folder.name if folder else None,
        "mib": size,
        "missing": list(checkpoint.missing()),
        "cache_dir": where,
    }
