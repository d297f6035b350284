"""What a person or a log collector sees on standard error: our own lines, whatever libraries have to say."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from experiments import write_experiment
from lmm_classifier.checkpoints.digits import write_digits
from lmm_classifier.cli.output import progress
from lmm_classifier.storage.progress import Progress
from served import started
from shell import run, run_all
from synthetic import write_corpus

ROOT = Path(__file__).parents[2]
DEMO = ("-c", "config/demo.yaml")
QUERY = "indexes/demo/corpus/query"
DIGITS = "image-text-to-text=shipped:qwen2-vl-digits"
COMMANDS: tuple[tuple[str, ...], ...] = (
    ("demo",),
    ("config", "check", "config/demo.yaml"),
    ("classify", "more", *DEMO, "--json", "--p-values", "p-values.jsonl"),
    ("evaluate", "few", *DEMO, "--near", "more", "--resamples", "10"),
    ("evaluate", "--drift", "p-values.jsonl", *DEMO),
    ("calibrate", *DEMO, "--held-out", "indexes/demo/corpus/calibration"),
    ("experiment", "run", "experiment.yaml", "-o", "runs/colours"),
    ("experiment", "compare", "runs/colours"),
    ("label", "run", "more", *DEMO, "-o", "runs/more"),
    ("label", "propose", "runs/more"),
    ("label", "apply", "runs/more", "--csv", "more.csv"),
    ("label", "simulate", "few", *DEMO, "-o", "runs/few", "--looks", "4", "--orders", "1"),
    ("caption", "few", "--model", DIGITS),
    ("index", "build", "corpus", "-o", "index", "--encoder", "descriptor"),
    ("index", "info", "index"),
    ("index", "verify", "index"),
    ("index", "add", "index", "more-corpus"),
    ("index", "remove", "index", "--label", "red"),
    ("index", "export", "index", "--npz", "vectors.npz"),
    ("index", "import", "vectors.npz", "--output", "again"),
    ("index", "audit", "index", "corpus"),
    ("steps",),
    ("run", "detect", "corpus/blue/0.png", "-p", "model.family=mtcnn"),
    ("run", "embed", "corpus/blue/0.png", "-p", "encoder.family=descriptor"),
    ("run", "segment", "corpus/blue/0.png", "-p", "points=[[10, 10]]"),  # its model is not here
    ("pipeline", "corpus/blue/0.png", "-c", "steps.yaml"),
    ("collections", "train", "corpus", "--encoder", "descriptor"),
    ("collections", "list"),
    ("collections", "show", "red"),
    ("collections", "convert", "--i-trust-these-files"),
    ("models", "list", *DEMO),
    ("models", "fetch", *DEMO),
    ("models", "verify", *DEMO),
    ("models", "where"),
    ("key",),
)
SERVERS: tuple[tuple[str, ...], ...] = (
    ("serve", "--config", "config/demo.yaml", "--port", "0"),
    ("review", "runs/more", "--port", "0"),
)
NEEDS = {("index", "push"): "an extra"}
"""Commands of the README that are tried elsewhere, and why."""
UPSTREAM = '''
"""Every call from our package into these libraries is deprecated."""
import atexit, os, sys, threading, warnings

FOLDERS = tuple(f"{os.sep}site-packages{os.sep}{name}{os.sep}" for name in ("transformers", "torch", "PIL"))
OURS = f"{os.sep}lmm_classifier{os.sep}"
seen = {name: 0 for name in FOLDERS}

def deprecate(frame, event, argument):
    if event != "call" or frame.f_back is None or OURS not in frame.f_back.f_code.co_filename:
        return
    for folder in FOLDERS:
        if folder in frame.f_code.co_filename:
            seen[folder] += 1
            for category in (FutureWarning, DeprecationWarning):
                warnings.warn(f"{frame.f_code.co_name} will be removed", category, stacklevel=3)

sys.setprofile(deprecate)
threading.setprofile(deprecate)
atexit.register(lambda: open(os.environ["SEEN"], "w").write(repr(list(seen.values()))))
'''


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demo, some of its photos, and a corpus of colours."""
    folder = tmp_path_factory.mktemp("home")
    shutil.copytree(ROOT / "config", folder / "config")
    write_experiment(folder, seeds=[0], grid={"calibrate.head": ["knn", "gda"]})
    write_corpus(folder / "more-corpus", seed=1000)
    (folder / "steps.yaml").write_text("pipeline: [embed: {encoder: {family: descriptor}}]")
    write_digits(folder / "digits")
    for name, pattern in (("few", "query/*/*0.png"), ("more", "query*/*/*8.png")):
        for photo in sorted((folder / "digits").glob(pattern)):
            place = folder / name / photo.parent.name
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(photo, place)
    return folder


@pytest.fixture(scope="module")
def said(home: Path) -> dict[tuple[str, ...], tuple[int, str]]:
    """Exit code and standard error of each command."""
    commands = [("--log-json", *command) for command in COMMANDS]
    ended = run_all(commands, home, PYTHONWARNINGS="always")  # each time, though it is one process
    return {command: (end.returncode, end.stderr) for command, end in zip(COMMANDS, ended, strict=True)}


def foreign(said: str) -> list[str]:
    """The lines that are no JSON of ours."""
    return [line for line in said.splitlines() if not is_ours(line)]


def is_ours(line: str) -> bool:
    try:
        body = json.loads(line)
    except ValueError:
        return False
    return str(body.get("logger", "")).startswith(("lmm_classifier", "uvicorn.")) and bool(
        body.get("message")
    )


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_with_json_logs_every_line_is_one_of_ours(
    command: tuple[str, ...], said: dict[tuple[str, ...], tuple[int, str]]
) -> None:
    code, text = said[command]
    assert foreign(text) == []
    assert code in (0, 2) or text


@pytest.mark.parametrize("command", SERVERS, ids=" ".join)
def test_servers_log_nothing_but_our_lines(
    command: tuple[str, ...],
    said: dict[tuple[str, ...], tuple[int, str]],
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They need what the commands before have made."""
    monkeypatch.chdir(home)
    log = home / f"{command[0]}.log"
    with started(log, "--log-json", *command, PYTHONWARNINGS="default") as (service, child):
        assert service.ask("GET", "/health" if command[0] == "serve" else "/").status == 200
        child.process.terminate()
        child.process.wait(30)
    assert foreign(log.read_text("utf-8")) == []


def test_every_command_of_the_readme_is_among_these() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    found = set(re.findall(r"^    (?:\$ )?lmm-classifier ([a-z]+)(?: ([a-z]+))?", readme, re.MULTILINE))
    groups = {command[:2] for command in (*COMMANDS, *SERVERS)} | NEEDS.keys()
    for name, second in found:
        assert any(group[0] == name for group in groups), name
        if name in ("index", "models", "collections", "experiment", "config"):
            assert (name, second) in groups, f"{name} {second}"


def answers(result: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in result.stdout.splitlines()]
    return [{key: value for key, value in each.items() if key != "timings"} for each in found]


def without_times(said: str) -> str:
    return re.sub(r"^\d\d:\d\d:\d\d ", "", said, flags=re.MULTILINE)


def test_libraries_that_warn_at_every_call_change_no_output(
    said: dict[tuple[str, ...], tuple[int, str]], home: Path, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(UPSTREAM)
    command = ("classify", "few", *DEMO, "--json")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment: Mapping[str, str] = {"PYTHONPATH": path, "SEEN": str(tmp_path / "seen")}
    plain = run(*command, cwd=home)
    warned = run(*command, cwd=home, PYTHONWARNINGS="always", **environment)
    assert all(count > 0 for count in json.loads((tmp_path / "seen").read_text()))
    assert any(answer["used_reranker"] for answer in answers(plain))
    assert answers(warned) == answers(plain)
    assert (warned.returncode, without_times(warned.stderr)) == (
        plain.returncode,
        without_times(plain.stderr),
    )


def test_verbose_shows_what_libraries_warn_of(home: Path, tmp_path: Path) -> None:
    warn = "import atexit, warnings\natexit.register(lambda: warnings.warn('it will go', FutureWarning))\n"
    (tmp_path / "sitecustomize.py").write_text(warn)
    check = ("config", "check", "config/demo.yaml")
    quiet = run(*check, cwd=home, PYTHONPATH=str(tmp_path))
    verbose = run("--verbose", *check, cwd=home, PYTHONPATH=str(tmp_path))
    assert "it will go" not in quiet.stderr
    assert "FutureWarning: it will go" in verbose.stderr


def test_a_bar_forgets_the_total_of_the_stage_before(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal to rich
    monkeypatch.delenv("NO_COLOR", raising=False)
    with progress() as on_progress:
        on_progress(Progress("reading", seen=122, total=122))
    assert "122/122" in capfd.readouterr().err
    with progress() as on_progress:
        on_progress(Progress("reading", seen=122, total=122))
        on_progress(Progress("fitting the thresholds"))
    said = capfd.readouterr().err
    after = said[said.index("fitting the thresholds") :]
    assert "122" not in after
