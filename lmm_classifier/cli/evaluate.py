"""`evaluate PHOTOS`, and `evaluate --drift FILE`."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lmm_classifier.cli.drift import report
from lmm_classifier.cli.output import first_lines, note, progress, warn_of_unanswerable
from lmm_classifier.errors import ConfigError
from lmm_classifier.text import printable

if TYPE_CHECKING:
    from lmm_classifier.evaluation.results import Evaluation

_OUTPUT = Path("evaluation")
_FIGURES, _PAGE = "evaluation.json", "report.html"


class UnknownKind(StrEnum):
    """What photos are whose label is not in the index."""

    near = "near"
    far = "far"


_Settings = Annotated[Path, typer.Option("--config", "-c", help="Settings, such as config/default.yaml.")]
_Photos = Annotated[
    Path | None, typer.Argument(help="Labelled photos: a folder per label, or a .csv or .jsonl table.")
]
_DriftLog = Annotated[
    Path | None,
    typer.Option(
        metavar="LOG", help="Instead of PHOTOS: test the log that `classify --p-values` wrote for drift."
    ),
]
_Window = Annotated[
    int, typer.Option(min=1, help="With --drift: how many of the latest photos to test by themselves.")
]
_Near = Annotated[
    Path | None,
    typer.Option(help="Photos of no label of the index that resemble one: a folder or table."),
]
_Far = Annotated[Path | None, typer.Option(help="Photos of no label of the index that resemble none.")]
_OutOfIndex = Annotated[
    UnknownKind,
    typer.Option(
        "--out-of-index",
        "--strangers",
        help="Treat PHOTOS whose label is not in the index as near or far unknowns.",
    ),
]
_Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", help=f"Folder for {_FIGURES} and {_PAGE}; {_OUTPUT}, or none with --json."
    ),
]
_CorpusRoot = Annotated[
    Path | None,
    typer.Option(help="Folder that the index's photos start from, to show neighbours on the page."),
]
_Resamples = Annotated[
    int, typer.Option(min=1, max=100_000, help="Bootstrap resamples behind each interval.")
]
_Seed = Annotated[int, typer.Option(min=0, help="Of the resamples.")]
_AsJson = Annotated[bool, typer.Option("--json", help=f"Print what {_FIGURES} holds.")]


def run(
    config: _Settings,
    photos: _Photos = None,
    drift: _DriftLog = None,
    window: _Window = 200,
    near: _Near = None,
    far: _Far = None,
    out_of_index: _OutOfIndex = UnknownKind.near,
    output: _Output = None,
    corpus_root: _CorpusRoot = None,
    resamples: _Resamples = 1000,
    seed: _Seed = 0,
    as_json: _AsJson = False,
) -> int:
    """Measure a classifier on photos whose labels are known, and on photos of no label of the index.

    None of them may be in the index. Exit code 2 when photos could not be read or the reranker not asked.
    With --drift no photo is needed: logged p-values tell whether the calibration still holds; exit code 2
    when it does not.
    """
    if drift is not None and photos is None:
        return report(drift, config, window, as_json)
    if photos is None or drift is not None:
        raise ConfigError("give either PHOTOS, or --drift LOG")
    from lmm_classifier.api.hybrid_classifier import HybridClassifier
    from lmm_classifier.corpus.source import read_corpus
    from lmm_classifier.evaluation.dataset import read_unknowns
    from lmm_classifier.evaluation.evaluate import evaluate

    folder = output or (None if as_json else _OUTPUT)
    if folder and folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; give --output a folder")
    classifier = HybridClassifier.from_yaml(config)
    known = read_corpus(photos)
    unknown_near, unknown_far = (None if source is None else read_unknowns(source) for source in (near, far))
    warn_of_unanswerable(classifier.unanswerable_labels)
    with progress() as on_progress:
        found = evaluate(
            classifier,
            known,
            near=unknown_near,
            far=unknown_far,
            out_of_index=out_of_index.value,
            resamples=resamples,
            seed=seed,
            on_progress=on_progress,
        )
    if folder:
        _write(found, folder, f"Evaluation of {config} on {photos}", corpus_root)
    if as_json:
        typer.echo(_json(found))
    else:
        _show(found, folder)
    return _told(found)


def _write(found: Evaluation, folder: Path, title: str, corpus_root: Path | None) -> None:
    from lmm_classifier.evaluation.page import write_evaluation
    from lmm_classifier.storage.atomic_files import replace_file

    replace_file(folder / _FIGURES, _json(found).encode() + b"\n")
    write_evaluation(folder / _PAGE, title, found, corpus_root)


def _json(found: Evaluation) -> str:
    return json.dumps(found.to_dict(), indent=2, allow_nan=False)


def _show(found: Evaluation, folder: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table as RichTable

    from lmm_classifier.evaluation.tables import BRACKETS, tables

    console = Console()
    for table in tables(found):
        shown = RichTable(*table.columns, title=table.title)
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)
    typer.echo(BRACKETS)
    if folder:
        for name in (_FIGURES, _PAGE):
            typer.echo(printable(str(folder / name)))


def _told(found: Evaluation) -> int:
    """The exit code, and why it is not 0."""
    if found.left_out:
        note(f"{len(found.left_out)} files that are not photos are left out")
    first_lines("skipped: {}", [f"{file.path}: {file.reason} [{file.code}]" for file in found.skipped])
    degraded = sum(query.answer.degraded is not None for query in found.queries)
    if degraded:
        note(f"{degraded} answers are degraded: the reranker could not be asked")
    return 2 if found.skipped or degraded else 0
