"""`classify PATH...`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lmm_classifier.cli.output import note, progress, warn_of_unanswerable
from lmm_classifier.corpus.corpus import SkippedFile
from lmm_classifier.errors import CorpusError
from lmm_classifier.text import printable

if TYPE_CHECKING:
    from lmm_classifier.api.classification import Classification
    from lmm_classifier.monitoring.p_value_log import PValueLog


def run(
    paths: Annotated[list[Path], typer.Argument(help="Photos, or folders of photos.", readable=False)],
    config: Annotated[Path, typer.Option("--config", "-c", help="Settings, such as config/default.yaml.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON Lines, one per photo; the default when output is piped.")
    ] = False,
    p_values: Annotated[
        Path | None,
        typer.Option(help="Append how known each photo looks to this log, for `evaluate --drift`."),
    ] = None,
) -> int:
    """Classify photos: a table for people, JSON Lines for programs."""
    from lmm_classifier.api.hybrid_classifier import HybridClassifier
    from lmm_classifier.monitoring.p_value_log import open_log

    classifier = HybridClassifier.from_yaml(config)
    classifier.load()
    warn_of_unanswerable(classifier.unanswerable_labels)
    photos = list(_expand(paths))
    if not photos:
        raise CorpusError(f"there is no photo in {', '.join(map(str, paths))}")
    with nullcontext() if p_values is None else open_log(p_values, classifier) as log:
        answers = _logged(classifier.classify_files(photos), log)
        if as_json or not sys.stdout.isatty():
            skipped, degraded = _json_lines(answers)
        else:
            skipped, degraded = _table(answers, len(photos))
    if degraded:
        note(f"{degraded} answers are degraded: the reranker could not be asked; see the reasons above")
    if skipped:
        note(f"{skipped} files were skipped")
    if skipped == len(photos):
        return 1
    return 2 if skipped or degraded else 0


def _expand(paths: Sequence[Path]) -> Iterator[Path]:
    """Files as given; of a folder, all images below it, and what could not be looked at."""
    from lmm_classifier.corpus.photos import list_photos

    for path in paths:
        if not path.is_dir():
            yield path
            continue
        photos = list_photos(path)
        if photos.left_out:
            note(f"{path}: {photos.left_out} files that are not photos are left out")
        yield from (path / name for name in photos.paths)


def _logged(
    answers: Iterator[Classification | SkippedFile], log: PValueLog | None
) -> Iterator[Classification | SkippedFile]:
    for answer in answers:
        if log is not None and not isinstance(answer, SkippedFile):
            log.note(answer)
        yield answer


def _json_lines(answers: Iterator[Classification | SkippedFile]) -> tuple[int, int]:
    skipped = degraded = 0
    for answer in answers:
        if isinstance(answer, SkippedFile):
            skipped += 1
            body = {"source": answer.path, "error": answer.reason, "code": answer.code}
        else:
            degraded += answer.degraded is not None
            body = answer.to_dict()
        sys.stdout.write(json.dumps(body, allow_nan=False) + "\n")
        sys.stdout.flush()
    return skipped, degraded


def _table(answers: Iterator[Classification | SkippedFile], total: int) -> tuple[int, int]:
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    from lmm_classifier.storage.progress import Progress

    photo, nearest = Column("photo", overflow="fold"), Column("nearest", overflow="fold")
    table = Table(photo, "answer", "score", "by", nearest, "why")
    skipped = degraded = 0
    with progress() as on_progress:
        for done, answer in enumerate(answers, start=1):
            if isinstance(answer, SkippedFile):
                skipped += 1
                cells: tuple[str, ...] = (answer.path, "-", "", "", "", f"{answer.reason} [{answer.code}]")
            else:
                degraded += answer.degraded is not None
                cells = _cells(answer)
            table.add_row(*(Text(printable(cell)) for cell in cells))  # Text: file names are not markup
            on_progress(Progress("classifying", done, total, skipped))
    Console().print(table)
    return skipped, degraded


def _cells(answer: Classification) -> tuple[str, ...]:
    near = answer.neighbours[0] if answer.neighbours else None
    nearest = f"{near.path} ({near.similarity:.3f})" if near else ""
    why = f"{answer.reason}; {answer.degraded}" if answer.degraded else answer.reason
    label = f"{answer.label} (uncertain)" if answer.status == "uncertain" else answer.label
    return answer.source, label, f"{answer.score:.3f}", answer.stage, nearest, why
