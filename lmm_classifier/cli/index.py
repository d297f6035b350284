"""`index build | add | remove | export | import | push`: making an index, and changing one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lmm_classifier import registry
from lmm_classifier.cli import index_audit, index_look, index_push
from lmm_classifier.cli.output import first_lines, help_without_command, note, progress
from lmm_classifier.text import printable

if TYPE_CHECKING:
    from lmm_classifier.api.build_index import RunnerOf
    from lmm_classifier.index.build import BuildReport
    from lmm_classifier.models.spec import ModelSpec

app = typer.Typer()
_ENGINES = ("local", "ray")
_MAX_BAD_RATIO = 0.05  # as in index/build.py, which is not imported for a help page

_Source = Annotated[Path, typer.Argument(help="Folder root/<label>/**, or a .csv or .jsonl with path,label.")]
_Index = Annotated[Path, typer.Argument(help="Index folder.")]
_EncoderNames = Annotated[
    list[str],
    typer.Option(
        "--encoder",
        help=f"NAME or NAME=WEIGHTS; repeat for several in one pass. {', '.join(registry.names('encoder'))}.",
    ),
]
_Weights = Annotated[
    str, typer.Option(help="Hub id, ./folder, ./file or shipped:NAME; default of the family.")
]
_Revision = Annotated[str, typer.Option(help="Branch, tag or commit on the hub.")]
_Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
_Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
_BatchSize = Annotated[int, typer.Option(min=1, max=4096, help="Images per model call.")]
_Workers = Annotated[
    int | None, typer.Option(min=1, help="Threads that decode; one per processor by default.")
]
_CacheDir = Annotated[
    Path | None, typer.Option(help="Folder of the checkpoints; the cache of huggingface_hub if left out.")
]
_MaxBadRatio = Annotated[
    float, typer.Option(min=0, max=1, help="Fail if more than this share of the images cannot be read.")
]
_JsonProgress = Annotated[
    bool, typer.Option("--json-progress", help="Progress as JSON lines on standard error.")
]
_Factory = Annotated[
    str | None,
    typer.Option(help="FAISS factory string, such as IVF4096,SQ8 or HNSW32; by size if left out."),
]
_TargetRecall = Annotated[
    float, typer.Option(min=0.5, max=1, help="Recall that an approximate search must reach.")
]


@app.callback(invoke_without_command=True)
def group(context: typer.Context) -> None:
    """Build an index from labelled photos, change it, check it and look at it."""
    help_without_command(context)


_Output = Annotated[Path, typer.Option("--output", "-o", help="Index folder, or a file ending in .npz.")]
_Compiled = Annotated[
    bool, typer.Option("--compile", help="Let torch compile the model: it starts later and runs faster.")
]
_Rebuild = Annotated[bool, typer.Option("--rebuild", help="Start over instead of synchronising.")]
_Engine = Annotated[str, typer.Option(help="local, or ray: many machines, see --address.")]
_Address = Annotated[
    str | None, typer.Option(help="HOST:PORT of a Ray cluster; if left out, Ray is started on this machine.")
]
_ShardRows = Annotated[
    int | None,
    typer.Option(min=1, help="Photos per shard; a worker makes one shard at a time. 2048 by default."),
]


@app.command()
def build(
    root: _Source,
    output: _Output,
    batch_size: _BatchSize = 32,
    encoder: _EncoderNames = ["siglip"],  # noqa: B006 -- typer copies it
    weights: _Weights = "",
    revision: _Revision = "main",
    cache_dir: _CacheDir = None,
    device: _Device = "auto",
    dtype: _Dtype = "auto",
    compiled: _Compiled = False,
    workers: _Workers = None,
    max_bad_ratio: _MaxBadRatio = _MAX_BAD_RATIO,
    factory: _Factory = None,
    target_recall: _TargetRecall = 0.99,
    rebuild: _Rebuild = False,
    engine: _Engine = "local",
    address: _Address = None,
    shard_rows: _ShardRows = None,
    json_progress: _JsonProgress = False,
) -> int:
    """Turn a labelled corpus into an index, or bring an index up to date with its corpus.

    Only new and changed photos are encoded. An interrupted build goes on where it was. Files that cannot
    be read are skipped and listed.
    """
    from lmm_classifier.api.build_index import build_index
    from lmm_classifier.index.publish import SearchOptions

    runner = _runner(engine, address)
    specs = _specs(
        encoder,
        weights,
        revision=revision,
        device=device,
        dtype=dtype,
        compile=compiled,
        cache_dir=cache_dir,
    )
    started = time.perf_counter()
    with progress(json_progress) as on_progress:
        report = build_index(
            root,
            output,
            encoder=specs,
            batch_size=batch_size,
            workers=workers,
            max_bad_ratio=max_bad_ratio,
            search=SearchOptions(factory, target_recall),
            shard_rows=shard_rows,
            rebuild=rebuild,
            runner=runner,
            on_progress=on_progress,
        )
    return _tell(report, started)


@app.command()
def add(
    index: _Index,
    root: _Source,
    batch_size: _BatchSize = 32,
    device: _Device = "auto",
    cache_dir: _CacheDir = None,
    workers: _Workers = None,
    max_bad_ratio: _MaxBadRatio = _MAX_BAD_RATIO,
    json_progress: _JsonProgress = False,
) -> int:
    """Add photos from another folder or table to an index, with the encoders that built it.

    A photo whose path the index has already takes the place of that one. `index build` synchronises
    with one corpus and would remove the added photos again.
    """
    from lmm_classifier.api.build_index import add_photos

    started = time.perf_counter()
    with progress(json_progress) as on_progress:
        report = add_photos(
            root,
            index,
            device=device,
            cache_dir=cache_dir,
            batch_size=batch_size,
            workers=workers,
            max_bad_ratio=max_bad_ratio,
            on_progress=on_progress,
        )
    return _tell(report, started)


@app.command()
def remove(
    index: _Index,
    path: Annotated[
        list[str], typer.Option("--path", help="Path of a photo as the index has it; repeat.")
    ] = [],  # noqa: B006 -- typer copies it
    label: Annotated[list[str], typer.Option("--label", help="All photos of a label; repeat.")] = [],  # noqa: B006
) -> int:
    """Remove photos from an index. No photo and no model is opened."""
    from lmm_classifier.errors import ConfigError
    from lmm_classifier.index.update import remove_from_index

    if not path and not label:
        raise ConfigError("nothing to remove: give --path or --label")
    started = time.perf_counter()
    return _tell(remove_from_index(index, path, label), started)


@app.command()
def export(
    index: Annotated[Path, typer.Argument(help="Index folder or .npz file.")],
    npz: Annotated[Path, typer.Option("--npz", help="File to write; must end in .npz.")],
    encoder: Annotated[str, typer.Option(help="Which of the index's encoders, if it has several.")] = "",
) -> int:
    """Write an index as one .npz file with embeddings, labels, metadata and metric, without pickle."""
    from lmm_classifier.index.update import export_npz

    count = export_npz(index, npz, encoder)
    typer.echo(f"{printable(str(npz))}: {count} images")
    return 0


@app.command("import")
def import_(
    npz: Annotated[Path, typer.Argument(help="File that `index export` or `index build` wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Index folder to make.")],
) -> int:
    """Turn an .npz file into an index folder."""
    from lmm_classifier.index.update import import_npz

    started = time.perf_counter()
    return _tell(import_npz(npz, output), started)


app.command()(index_audit.audit)
app.command()(index_look.info)
app.command()(index_look.verify)
app.command()(index_push.push)


def _runner(engine: str, address: str | None) -> RunnerOf | None:
    """Where the shards are made; None means here."""
    from lmm_classifier.errors import ConfigError

    if engine not in _ENGINES:
        raise ConfigError(f"unknown engine {engine!r}{registry.did_you_mean(engine, _ENGINES)}")
    if engine == "local":
        if address is not None:
            raise ConfigError("--address is that of a Ray cluster; add --engine ray")
        return None
    from lmm_classifier.api.build_index import on_ray
    from lmm_classifier.index.ray_runner import check_installed

    check_installed()
    return on_ray(address)


def _specs(encoders: Sequence[str], weights: str, **options: str | bool | Path | None) -> list[ModelSpec]:
    """A spec per `NAME` or `NAME=WEIGHTS`; `--weights` is another way to say the weights of a single one."""
    from lmm_classifier.config.pipeline import model_spec
    from lmm_classifier.errors import ConfigError

    if weights and len(encoders) > 1:
        raise ConfigError("--weights goes with one encoder; write --encoder NAME=WEIGHTS for each of several")
    if len(set(encoders)) < len(encoders):
        raise ConfigError(f"an encoder is given twice: {', '.join(encoders)}")
    specs = []
    for name, _, own in (text.partition("=") for text in encoders):
        if own and weights:
            raise ConfigError(f"the weights of {name} are given twice: {own} and {weights}")
        specs.append(model_spec(family=name, weights=own or weights, **options))
    return specs


def _tell(report: BuildReport, started: float) -> int:
    """What a person should know of a build; returns the exit code."""
    for warning in report.warnings:
        note(f"warning: {warning}")
    if report.duplicates:
        note(f"warning: {report.duplicates} images are exact copies of others")
    first_lines("warning: same photo under different labels: {}", [", ".join(c) for c in report.conflicts])
    first_lines("changed while the build ran, build again: {}", report.changed)
    first_lines("skipped: {}", [f"{s.path}: {s.reason} [{s.code}]" for s in report.skipped])
    parts = [
        f"{report.indexed} images of {len(report.labels)} labels",
        f"{report.encoded} of them encoded now",
        *([f"{report.removed} removed"] if report.removed else []),
        f"in {time.perf_counter() - started:.1f} s",
        *([f"{len(report.skipped)} files skipped"] if report.skipped else []),
    ]
    typer.echo(f"{printable(str(report.output))}: {', '.join(parts)}")
    return 2 if report.skipped or report.changed else 0
