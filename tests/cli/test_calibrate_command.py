"""`calibrate` as a shell runs it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from shell import run
from synthetic import COLOURS, picture, write_corpus

SETTINGS = "encoder: {family: fake}\nretrieval: {index_path: index}\nrerank: {enabled: false}\n"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of 3 x 20 pictures, and settings."""
    folder = tmp_path_factory.mktemp("calibrate")
    write_corpus(folder / "corpus", per_label=20)
    result = run("index", "build", "corpus", "--output", "index", "--encoder", "fake", cwd=folder)
    assert result.returncode == 0, result.stderr
    (folder / "settings.yaml").write_text(SETTINGS)
    (folder / "by_hand.yaml").write_text(SETTINGS.replace("index}", "index, open_set_threshold: 0.2}"))
    return folder


def test_calibrated_thresholds_are_shown_stored_and_used(work: Path) -> None:
    result = run("calibrate", "-c", "settings.yaml", "--keep-known", "0.9", cwd=work)
    assert result.returncode == 0, result.stderr
    for part in ("log loss", "AUROC", "expected route", "keep 90.0% of known images", "60 photos"):
        assert part in result.stdout
    info = run("index", "info", "index", cwd=work)
    assert "calibration: keep 90.0% of known images" in info.stdout
    check = run("config", "check", "settings.yaml", cwd=work)
    assert "(calibrated)" in check.stdout
    for offset, colour in enumerate(COLOURS.values()):
        picture(colour, seed=7000 + offset).save(work / f"new{offset}.png")
    lines = run("classify", "new0.png", "new1.png", "-c", "settings.yaml", cwd=work).stdout.splitlines()
    answers = [json.loads(line) for line in lines]
    stored = json.loads((work / "index/calibration.json").read_text())
    for answer in answers:
        assert answer["thresholds"]["source"] == "calibrated"
        assert answer["thresholds"]["known"] == stored["gates"]["known"]
        assert answer["route"] in {"accept", "unknown", "rerank", "review"}
        assert 0 < answer["p_value"] <= 1
    assert run("index", "verify", "index", cwd=work).returncode == 0


def test_json_is_the_stored_calibration(work: Path) -> None:
    result = run("calibrate", "-c", "settings.yaml", "--json", "--per-label", "--head", "knn", cwd=work)
    assert result.returncode == 0, result.stderr
    body = json.loads(result.stdout)
    stored = json.loads((work / "index/calibration.json").read_text())
    assert body.items() <= stored.items()
    assert list(body["head"]["weights"]) == ["knn"]
    expected = np.sum(list(body["expected"].values()))
    assert expected == pytest.approx(1)


def test_settings_that_set_a_threshold_are_told_that_it_wins(work: Path) -> None:
    result = run("calibrate", "-c", "by_hand.yaml", cwd=work)
    assert result.returncode == 0
    assert "the settings set a threshold, so they do not use this calibration" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--keep-known", "1"], "keep_known must lie between 0 and 1, got 1.0"),
        (["--keep-known", "nan"], "keep_known must lie between 0 and 1, got nan"),
        (["--keep", "red"], "--keep 'red': write LABEL=SHARE"),
        (["--keep", "red=much"], "--keep 'red=much': write LABEL=SHARE"),
        (["--keep", "mauve=0.9"], "the index has no label 'mauve'"),
        (["--keep", "red=0.999"], "too few to keep 99.9% of them"),
        (["--costs", "1:2"], "--costs '1:2': write REJECTED:ACCEPTED:SHARE"),
        (["--costs", "1:2:3"], "unknown_share must lie between 0 and 1"),
        (["--costs", "-1:2:0.5"], "costs must be above 0"),
        (["--head", "knm"], "unknown head or score 'knm'; did you mean 'knn'?"),
        (["--score", "max_similarty"], "did you mean 'max_similarity'?"),
        (["--held-out", "nowhere"], "nowhere"),
        (["--held-out", "corpus"], "is in the index too"),
    ],
)
def test_bad_input_is_one_line(work: Path, arguments: list[str], says: str) -> None:
    before = (work / "index").stat().st_mtime_ns
    result = run("calibrate", "-c", "settings.yaml", *arguments, cwd=work)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    assert says in result.stderr
    assert (work / "index").stat().st_mtime_ns == before  # nothing was written
