"""`classify --p-values` and `evaluate --drift` as a shell runs them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shell import run
from synthetic import COLOURS

SETTINGS = "encoder: {family: fake}\nretrieval: {index_path: index}\nrerank: {enabled: false}\n"


def write_photos(root: Path, seed: int, per_label: int = 40, grey: float = 0.0) -> Path:
    """Colours as different from each other as a draw makes them, and so much nearer to grey."""
    generator = np.random.default_rng(seed)
    for label, colour in COLOURS.items():
        (root / label).mkdir(parents=True)
        for i in range(per_label):
            share = min(1, generator.uniform(0, 0.4) + grey)
            noise = generator.integers(-20, 21, (24, 24, 3))
            pixels = (1 - share) * np.asarray(colour) + share * 128 + noise
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / label / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibrated index of three colours, and photos that are like it, or have faded."""
    folder = tmp_path_factory.mktemp("drift")
    for seed, name in enumerate(("corpus", "held", "same")):
        write_photos(folder / name, seed)
    write_photos(folder / "faded", 7, grey=0.4)
    (folder / "settings.yaml").write_text(SETTINGS, encoding="utf-8")
    assert run("index", "build", "corpus", "-o", "index", "--encoder", "fake", cwd=folder).returncode == 0
    fitted = run(
        "calibrate", "-c", "settings.yaml", "--held-out", "held", "--score", "max_similarity", cwd=folder
    )
    assert fitted.returncode == 0, fitted.stderr
    for name in ("same", "faded"):
        done = run("classify", name, "-c", "settings.yaml", "--p-values", f"{name}.jsonl", cwd=folder)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 120
    return folder


def test_photos_like_those_before_raise_no_alarm(work: Path) -> None:
    result = run("evaluate", "--drift", "same.jsonl", "-c", "settings.yaml", cwd=work)
    assert (result.returncode, result.stderr) == (0, "")
    assert "no sign of drift: keep the calibration" in result.stdout
    assert "of known photos 5.0% are to be; calibrated on 120" in result.stdout


def test_faded_photos_do(work: Path) -> None:
    result = run("evaluate", "--drift", "faded.jsonl", "-c", "settings.yaml", cwd=work)
    assert (result.returncode, result.stderr) == (2, "")
    assert "look less known than those calibrated on" in result.stdout
    body = json.loads(
        run("evaluate", "--drift", "faded.jsonl", "-c", "settings.yaml", "--json", cwd=work).stdout
    )
    assert (body["recalibrate"], body["whole"]["direction"], body["whole"]["photos"]) == (
        True,
        "smaller",
        120,
    )
    assert body["low"] > body["asked"]


def test_when_it_began_shows_in_the_latest(work: Path) -> None:
    text = "".join((work / f"{name}.jsonl").read_text(encoding="utf-8") for name in ("same", "same", "faded"))
    (work / "both.jsonl").write_text(text, encoding="utf-8")
    command = ("evaluate", "--drift", "both.jsonl", "-c", "settings.yaml", "--json", "--window", "120")
    body = json.loads(run(*command, cwd=work).stdout)
    assert (body["latest"]["photos"], body["latest"]["alarm"]) == (120, True)
    assert body["latest"]["statistic"] > body["whole"]["statistic"]


def test_cut_off_and_foreign_lines_are_told(work: Path) -> None:
    text = (work / "same.jsonl").read_text(encoding="utf-8")
    (work / "odd.jsonl").write_text(
        '{"p_value": 0.5, "calibration": "of before"}\n' + text + '{"time": "20', encoding="utf-8"
    )
    result = run("evaluate", "--drift", "odd.jsonl", "-c", "settings.yaml", cwd=work)
    assert result.returncode == 0
    assert result.stderr.splitlines() == [
        "1 lines of other calibrations are left out",
        "left out what a crash cut off: 1 lines, 122",
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["evaluate", "-c", "settings.yaml"], "give either PHOTOS, or --drift LOG"),
        (
            ["evaluate", "same", "--drift", "same.jsonl", "-c", "settings.yaml"],
            "give either PHOTOS, or --drift",
        ),
        (
            ["evaluate", "--drift", "missing", "-c", "settings.yaml"],
            "missing: No such file or directory; `classify",
        ),
        (["evaluate", "--drift", "settings.yaml", "-c", "settings.yaml"], "no line that can be read"),
        (["evaluate", "--drift", "same.jsonl", "-c", "by_hand.yaml"], "p-values need a calibrated index"),
        (["classify", "same", "-c", "by_hand.yaml", "--p-values", "x"], "p-values need a calibrated index"),
        (["classify", "same", "-c", "settings.yaml", "--p-values", "corpus"], "cannot write corpus"),
    ],
)
def test_refusals_are_one_line(work: Path, arguments: list[str], says: str) -> None:
    by_hand = SETTINGS.replace("index}", "index, open_set_threshold: 0.3}")
    (work / "by_hand.yaml").write_text(by_hand, encoding="utf-8")
    result = run(*arguments, cwd=work)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1), result.stderr
    assert says in result.stderr
    assert not (work / "x").exists()
