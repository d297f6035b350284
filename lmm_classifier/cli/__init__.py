"""The command line: each command parses, calls one function, prints.

Exit codes: 0 all good; 2 finished, but something was skipped or degraded; 1 failed; 130 interrupted;
143 terminated. Heavy modules are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from lmm_classifier import __version__
from lmm_classifier.cli import (
    calibrate,
    caption,
    classify,
    collections,
    config,
    demo,
    evaluate,
    experiment,
    index,
    label,
    models,
    review,
    serve,
    steps,
)
from lmm_classifier.cli.output import help_without_command, note
from lmm_classifier.errors import LmmClassifierError
from lmm_classifier.logging_config import PACKAGE, PYTHON_WARNINGS, setup_logging, silence_libraries

_INTERRUPTED = 130  # what a shell expects after Ctrl-C
_TERMINATED = 143  # and after SIGTERM
_IDLE = {"OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_THREAD_TIMEOUT": "4"}
"""Threads of a model that have nothing to do sleep. By default they spin, and take what decoding needs: on
two cores a labelling run was a third slower."""
_FULL_COLLECTION = 100
"""Collections of younger objects before Python's collector goes through all there are; its own figure is 10.
The half million objects of torch and transformers never become garbage: to go through them took most of a
second of every start, and a twentieth of a labelling run."""


app = typer.Typer(
    name="lmm-classifier",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("demo")(demo.run)
app.add_typer(index.app, name="index")
app.command("calibrate")(calibrate.run)
app.command("classify")(classify.run)
app.command("evaluate")(evaluate.run)
app.command("caption")(caption.run)
app.add_typer(label.app, name="label")
app.command("review")(review.run)
app.command("run")(steps.run)
app.command("pipeline")(steps.pipeline)
app.command("steps")(steps.steps)
app.command("serve")(serve.serve)
app.command("key")(serve.key)
app.add_typer(experiment.app, name="experiment")
app.add_typer(collections.app, name="collections")
app.add_typer(config.app, name="config")
app.add_typer(models.app, name="models")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback(invoke_without_command=True)
def common(
    context: typer.Context,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", "-v", help="Log at INFO level, and show the warnings of libraries."),
    ] = False,
    log_json: Annotated[bool, typer.Option(help="Log one JSON object per line.")] = False,
    version: Annotated[  # noqa: ARG001 -- its callback does the work
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Hybrid image classifier: retrieval, calibrated unknowns, and a vision-language model for the rest.

    Exit codes: 0 all good; 2 finished, but something was skipped or degraded; 1 failed.
    """
    shown = (PACKAGE, PYTHON_WARNINGS) if verbose else (PACKAGE,)
    setup_logging("INFO" if verbose else "WARNING", json=log_json, loggers=shown)
    help_without_command(context)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and end the process with its exit code; expected errors become one line."""
    signal.signal(signal.SIGTERM, _terminated)
    silence_libraries()
    gc.set_threshold(*gc.get_threshold()[:2], _FULL_COLLECTION)
    for name, value in _IDLE.items():  # the libraries read it when they are loaded, which commands do
        os.environ.setdefault(name, value)
    try:
        code = app(args=arguments, prog_name="lmm-classifier", standalone_mode=False)
        sys.stdout.flush()
        if code == _INTERRUPTED:
            note("interrupted")
    except LmmClassifierError as error:
        code = _failed(str(error))
    except typer.TyperException as error:
        code = _failed(error.format_message())
    except BrokenPipeError:  # the reader has seen enough; nothing is left to flush
        sys.stdout = None
        code = 0
    except OSError as error:
        sys.stdout = None
        code = _failed(f"{error.filename or 'output'}: {error.strerror or error}")
    sys.exit(code)


def _terminated(_number: int, _frame: object) -> NoReturn:
    """End as Ctrl-C does: whoever holds a lock or a temporary file lets go of it on the way out."""
    note("terminated")
    raise SystemExit(_TERMINATED)


def _failed(message: str) -> int:
    note(f"error: {message}")
    return 1
