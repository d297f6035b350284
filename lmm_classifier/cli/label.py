"""`label run FOLDER`, and what is done with the run it makes: `label propose`, `apply` and `simulate`."""

from __future__ import annotations

import time
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from lmm_classifier.cli import label_apply, label_propose, label_simulate
from lmm_classifier.cli.output import first_lines, help_without_command, note, progress, warn_of_unanswerable
from lmm_classifier.errors import ConfigError
from lmm_classifier.registry import did_you_mean
from lmm_classifier.text import printable

if TYPE_CHECKING:
    from lmm_classifier.labelling.run import Labelled
    from lmm_classifier.monitoring.drift import Drift

_RUN = "run"


class _RunUnlessNamed(TyperGroup):
    """`label FOLDER`, as it was written in 0.1, is `label run FOLDER`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        commands = tuple(sorted(self.commands))
        if args and args[0] not in commands and args != ["--help"]:
            if get_close_matches(args[0], commands) and not Path(args[0]).exists():
                raise ConfigError(f"there is no folder {args[0]}{did_you_mean(args[0], commands)}")
            args = [_RUN, *args]
        found: list[str] = super().parse_args(ctx, args)
        return found


app = typer.Typer(
    cls=_RunUnlessNamed,
    help="Label a folder of photos; propose labels for the unknowns; take what was reviewed into the corpus.",
)
app.callback(invoke_without_command=True)(help_without_command)


@app.command(_RUN)
def label(
    source: Annotated[
        Path,
        typer.Argument(help="Folder of photos, or a .csv or .jsonl with a column `path`.", readable=False),
    ],
    config: Annotated[Path, typer.Option("--config", "-c", help="Settings, such as config/default.yaml.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run, such as runs/holiday.")],
    as_csv: Annotated[bool, typer.Option("--csv", help="Also write results.csv.")] = False,
    as_jsonl: Annotated[bool, typer.Option("--jsonl", help="Also write results.jsonl.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew instead of going on.")] = False,
    json_progress: Annotated[
        bool, typer.Option("--json-progress", help="Progress as JSON lines on standard error.")
    ] = False,
) -> int:
    """Label photos: results.parquet, run.json and report.html in the folder of the run.

    A run that was interrupted goes on with the same command. What cannot be read is a row with a code.
    """
    from lmm_classifier.api.hybrid_classifier import HybridClassifier
    from lmm_classifier.labelling.report import write_report
    from lmm_classifier.labelling.run import label_photos
    from lmm_classifier.labelling.run_drift import drift_of
    from lmm_classifier.labelling.table_export import write_results

    started = time.perf_counter()
    classifier = HybridClassifier.from_yaml(config)
    with progress(json_progress) as on_progress:
        done = label_photos(source, classifier, output, restart=restart, on_progress=on_progress)
        drift = drift_of(done.run, classifier)
        files = write_results(done.run, as_csv=as_csv, as_jsonl=as_jsonl)
        page = write_report(done.run, drift.advice if drift else None)
    warn_of_unanswerable(classifier.unanswerable_labels)
    return _tell(done, drift, (*files, page), time.perf_counter() - started)


app.command("propose")(label_propose.propose)
app.command("apply")(label_apply.apply)
app.command("simulate")(label_simulate.simulate)


def _tell(done: Labelled, drift: Drift | None, files: tuple[Path, ...], seconds: float) -> int:
    """What a person should know of a run; returns the exit code."""
    counts, folder = done.counts, printable(str(done.run.folder))
    status, errors = counts["status"], counts["errors"]
    failed, labelled = sum(errors.values()), counts["photos"] - done.before
    if done.left_out:
        note(f"{done.left_out} files that are not photos are left out")
    first_lines("could not be read: {}", [f"{n} [{code}]" for code, n in errors.items()])
    if done.forgotten:
        note(f"{done.forgotten} photos were done again: others were added or removed before them")
    if counts["degraded"]:
        note(f"{counts['degraded']} answers are degraded: the reranker could not be asked")
    parts = [
        f"{counts['photos']} photos",
        *(f"{status[kind]} {kind}" for kind in ("known", "uncertain", "unknown") if kind in status),
        *([f"{counts['reranked']} by the reranker"] if counts["reranked"] else []),
        *([f"{failed} could not be read"] if failed else []),
        *([f"{done.before} of them before"] if done.before else []),
        f"{labelled} in {seconds:.1f} s",
    ]
    typer.echo(f"{folder}: {', '.join(parts)}")
    for file in files:
        typer.echo(printable(str(file)))
    if drift is not None and drift.recalibrate:
        typer.echo(drift.advice)
    if failed == counts["photos"]:
        return 1
    return 2 if failed or counts["degraded"] else 0
