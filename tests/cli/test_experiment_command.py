"""`experiment run | compare` as a shell runs them, killed in the middle too."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clock import wait_until
from experiments import records, write_experiment
from shell import run


def without_times(runs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    timed = ("milliseconds_per_photo", "created")
    bare = {}
    for name, body in runs.items():
        bare[name] = {key: value for key, value in body.items() if key not in timed}
        bare[name]["index"] = body["index"] | {"path": None}
    return bare


def started(path: Path, output: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "lmm_classifier", "experiment", "run", str(path), "-o", output]
    return subprocess.Popen(
        command,
        cwd=path.parent,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        # A shell that starts the tests in the background has told them to ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment of four runs, carried out into runs/experiment."""
    folder = tmp_path_factory.mktemp("experiment")
    write_experiment(folder, grid={"calibrate.score": ["max_similarity", "mahalanobis"]})
    done = run("experiment", "run", "experiment.yaml", "--json-progress", cwd=folder)
    assert (done.returncode, done.stdout) == (0, "runs/experiment: 4 runs finished\n"), done.stderr
    stages = {json.loads(line)["stage"] for line in done.stderr.splitlines()}
    assert {"reading the photos", "run 4 of 4: answering the queries"} <= stages
    return folder


def test_run_again_and_compare(work: Path) -> None:
    again = run("experiment", "run", "experiment.yaml", cwd=work)
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout == "runs/experiment: 0 runs finished, 4 were finished before\n"
    shown = run("experiment", "compare", "runs/experiment", cwd=work)
    assert (shown.returncode, shown.stderr) == (0, "")
    for said in ("near OSCR", "mahalanobis", "±", "runs/experiment/compare.html"):
        assert said in shown.stdout
    body = json.loads(run("experiment", "compare", "runs/experiment", "--json", cwd=work).stdout)
    assert [cell["seeds"] for cell in body["cells"]] == [[0, 1]] * 2
    one = next((work / "runs/experiment").glob("*/config.yaml"))
    photo = next((work / "corpus").rglob("*.png"))
    assert run("classify", photo, "-c", one, cwd=work).returncode == 0  # a run's settings work by themselves


@pytest.mark.parametrize("runs_before", [0, 2])
def test_killed_in_the_middle_it_goes_on_to_the_same_results(work: Path, runs_before: int) -> None:
    name = f"killed{runs_before}"
    output = work / name
    process = started(work / "experiment.yaml", name)
    wait_until(
        lambda: len(records(output)) >= runs_before and len(list(output.glob("*/index"))) > runs_before
    )
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert runs_before <= len(records(output)) < 4
    assert run("experiment", "run", "experiment.yaml", "-o", name, cwd=work).returncode == 0
    resumed, undisturbed = (records(folder) for folder in (output, work / "runs/experiment"))
    assert len(resumed) == 4
    assert without_times(resumed) == without_times(undisturbed)
    for run_name in resumed:
        one, other = (
            json.loads((folder / run_name / "evaluation.json").read_bytes())["photos"]
            for folder in (output, work / "runs/experiment")
        )
        assert one == other
        assert not list((output / run_name).rglob("*.tmp"))


def test_interrupted_it_ends_in_one_line_and_lets_go(tmp_path: Path) -> None:
    path = write_experiment(tmp_path)
    process = started(path, "out")
    wait_until(lambda: list((tmp_path / "out").glob("*/index")))
    os.kill(process.pid, signal.SIGSTOP)  # it must not be done before the second one has started
    second = run("experiment", "run", path, "-o", "out", cwd=tmp_path)
    os.kill(process.pid, signal.SIGCONT)
    assert (second.returncode, second.stderr.count("\n")) == (1, 1)
    assert "is in use by another experiment" in second.stderr
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, b"interrupted\n")
    assert run("experiment", "run", path, "-o", "out", cwd=tmp_path).returncode == 0


def test_a_failing_run_is_told_and_makes_it_2(tmp_path: Path) -> None:
    path = write_experiment(tmp_path, grid={"calibrate.score": ["max_similarity", "odd"]}, seeds=[0])
    done = run("experiment", "run", path, "-o", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == "out: 1 runs finished, 1 failed\n"
    assert done.stderr.startswith("failed: odd.seed0.")
    assert "unknown head or score 'odd'" in done.stderr
    shown = run("experiment", "compare", "out", cwd=tmp_path)
    assert (shown.returncode, shown.stderr) == (2, done.stderr)
    assert "Failed" in (tmp_path / "out/compare.html").read_text(encoding="utf-8")


def test_unreadable_photos_are_told_and_make_it_2(tmp_path: Path) -> None:
    path = write_experiment(tmp_path, grid={"retrieval.top_k": [10]}, seeds=[0], hold_out_labels=None)
    (tmp_path / "corpus/red/broken.png").write_bytes(b"no photo")
    done = run("experiment", "run", path, "-o", "out", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "broken.png" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "missing.yaml"], "missing.yaml: cannot be read"),
        (["run", "experiment.yaml", "-o", "base.yaml"], "base.yaml is a file; give --output a folder"),
        (["run", "experiment.yaml", "-o", "corpus"], "holds something else than an experiment"),
        (["run", "base.yaml"], "base.yaml: "),
        (["compare", "corpus"], "is no folder of an experiment"),
        (["compare", "missing"], "is no folder of an experiment"),
    ],
)
def test_bad_arguments_are_one_line(tmp_path: Path, arguments: list[str], says: str) -> None:
    write_experiment(tmp_path)
    result = run("experiment", *arguments, cwd=tmp_path)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1), result.stderr
    assert says in result.stderr


@pytest.mark.slow
def test_shipped_experiments_run_to_their_end(tmp_path: Path) -> None:
    shutil.copytree(Path(__file__).parents[2] / "config", tmp_path / "config")
    assert run("demo", cwd=tmp_path).returncode == 0
    for path in sorted((tmp_path / "config/experiments").glob("*.yaml")):
        process = started(path, str(tmp_path / "runs" / path.stem))
        _, errors = process.communicate()
        assert (process.returncode, errors) == (0, b"")
        shown = run("experiment", "compare", f"runs/{path.stem}", cwd=tmp_path)
        assert shown.returncode == 0, shown.stderr
