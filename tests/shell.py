"""The command line as a shell runs it, and other programs in Python, without the seconds that imports take.

Each program is a fork of a process that has imported everything once. It has arguments, folder, environment,
streams and an exit code of its own. Where variables differ that libraries read while they are imported, a
program is started from nothing.
"""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

SECONDS = 120
READ_AT_IMPORT = ("HF_", "TRANSFORMERS_", "TORCH_", "OMP_", "MKL_", "PYTHON", "XDG_", "HOME")
AT_START = {**os.environ, "HF_HUB_OFFLINE": "1"}
ONE_AFTER_THE_OTHER = """
import json, os, sys
from lmm_classifier.cli import main

for number, command in enumerate(json.load(open("commands"))):
    for stream in (1, 2):
        os.dup2(os.open(f"{stream}-{number}", os.O_WRONLY | os.O_CREAT), stream)
    code = 0
    os.chdir(sys.argv[1])
    try:
        main(command)
    except SystemExit as end:
        code = end.code
    os.chdir(sys.argv[2])
    sys.stdout.flush()
    sys.stderr.flush()
    open(f"code-{number}", "w").write(str(code))
"""
"""What C libraries say counts too."""
Completed = subprocess.CompletedProcess[str]


def run(*arguments: str | Path, cwd: Path, **environment: str) -> Completed:
    """`lmm-classifier` with these arguments, offline."""
    return python("-m", "lmm_classifier", *arguments, cwd=cwd, **{"HF_HUB_OFFLINE": "1", **environment})


def run_all(commands: Sequence[Sequence[str | Path]], cwd: Path, **environment: str) -> list[Completed]:
    """As `run`, one command after the other in one process: for environments that need one of their own."""
    words = [[str(word) for word in command] for command in commands]
    with TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "commands").write_text(json.dumps(words))
        subprocess.run(
            [sys.executable, "-c", ONE_AFTER_THE_OTHER, cwd, folder],
            cwd=folder,
            env={**os.environ, **environment},
            check=True,
            timeout=280,
        )

        def said(stream: int, number: int) -> str:
            return (folder / f"{stream}-{number}").read_text("utf-8")

        return [
            subprocess.CompletedProcess(
                command, int((folder / f"code-{n}").read_text()), said(1, n), said(2, n)
            )
            for n, command in enumerate(words)
        ]


def python(*arguments: str | Path, cwd: Path | None = None, **environment: str) -> Completed:
    """Python with `-c` and a program, or `-m` and a module, and its arguments."""
    words, folder, variables = [*map(str, arguments)], cwd or Path.cwd(), {**os.environ, **environment}
    read = [name for name in AT_START | variables if name.startswith(READ_AT_IMPORT)]
    if all(AT_START.get(name) == variables.get(name) for name in read):
        return _forked(words, folder, variables)
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
        env=variables,
    )


@cache
def forks() -> multiprocessing.context.ForkServerContext:
    """Forks of a process that has imported everything, has no threads, and has asked nothing of anybody."""
    with pytest.MonkeyPatch.context() as patch:
        # The process looks for modules only where PYTHONPATH says.
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        forkserver.set_forkserver_preload(["every_module"])
        forkserver.ensure_running()
    return multiprocessing.get_context("forkserver")


def _forked(words: list[str], cwd: Path, variables: dict[str, str]) -> Completed:
    with TemporaryDirectory() as place:
        streams = [Path(place, name) for name in ("stdout", "stderr")]
        program = forks().Process(target=_program, args=(words, cwd, variables, streams))
        program.start()
        program.join(SECONDS)
        if program.exitcode is None:
            program.kill()
            raise subprocess.TimeoutExpired(words, SECONDS)
        return subprocess.CompletedProcess(words, program.exitcode, *(s.read_text("utf-8") for s in streams))


def _program(words: list[str], cwd: Path, variables: dict[str, str], streams: list[Path]) -> None:
    """What a new interpreter would do with these words; ends with the code that it would end with."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(variables)
    for number, path in enumerate(streams, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    kind, what, *arguments = words
    sys.argv = [kind, *arguments]
    sys.path.insert(0, str(cwd))
    try:
        if kind == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102
    finally:
        atexit._run_exitfuncs()
