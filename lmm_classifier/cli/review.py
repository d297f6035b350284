"""`review`: a person says what the photos of a labelling run are."""

from __future__ import annotations

import getpass
import os
import sys
import threading
import webbrowser
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from lmm_classifier.cli.output import note
from lmm_classifier.errors import ConfigError
from lmm_classifier.optional import extra

_SCREENS = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")  # one is set where a browser has somewhere to open


def run(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run, such as runs/holiday.")],
    reviewer: Annotated[
        str | None, typer.Option(help="Name of the reviewer; the login name if left out.")
    ] = None,
    corpus: Annotated[
        Path | None,
        typer.Option(
            file_okay=False, exists=True, help="Folder of the index's photos, for the neighbours' pictures."
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address of this machine to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 0,
    no_open: Annotated[bool, typer.Option("--no-open", help="Open no browser.")] = False,
) -> int:
    """Review a labelling run in the browser, by keyboard. Every answer is stored at once; Ctrl-C stops it."""
    from lmm_classifier.config.service import is_loopback

    if not is_loopback(host):
        raise ConfigError(
            f"{host} can be reached from other machines, and a review has no keys: use 127.0.0.1"
        )
    from lmm_classifier.labelling.run_store import LabellingRun

    with extra("uvicorn", "service"):
        from lmm_classifier.labelling.active_queue import ActiveQueue
        from lmm_classifier.review.app import SETTINGS, create_review
        from lmm_classifier.service.server import serve

    run = LabellingRun(folder)
    pictures = corpus or _corpus_of(run.manifest.settings)
    app = create_review(run, reviewer or _login(), order=ActiveQueue(run), corpus=pictures)
    _tell_of_cut_off_lines(folder)
    shown = f"[{host}]" if ":" in host else host

    def on_bound(bound: int) -> None:
        url = f"http://{shown}:{bound}/"
        typer.echo(url)
        if not no_open:
            _open(url)

    serve(app, SETTINGS, host, port, on_bound)
    return 0


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError) as error:  # a container's user may have no name
        raise ConfigError("this user has no name: give --reviewer") from error


def _corpus_of(settings: Mapping[str, Any]) -> Path | None:
    """Where the run's settings have the corpus, if they say; for pictures only, so a wrong place is told."""
    steps = settings.get("pipeline") or ()
    sections = [settings.get("rerank"), *(options for step in steps for options in step.values())]
    named = [section.get("corpus_root") for section in sections if isinstance(section, dict)]
    found = next((Path(root) for root in named if root), None)
    if found is None or found.is_dir():
        return found
    note(f"warning: {found} is not there: neighbours have no pictures; --corpus names another folder")
    return None


def _tell_of_cut_off_lines(folder: Path) -> None:
    from lmm_classifier.labelling.annotations import Annotations

    verdicts = Annotations(folder)
    verdicts.read()
    for log in verdicts.logs:
        for number in log.cut_off:
            note(
                f"warning: {log.path}:{number} was cut off by a crash; it was never answered, and counts not"
            )


def _open(url: str) -> None:
    """Show the page where there is a screen; a browser for the terminal would take it from us."""
    if sys.platform.startswith("linux") and not any(os.environ.get(name) for name in _SCREENS):
        return
    # a thread, for some wait until they are shut
    threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
