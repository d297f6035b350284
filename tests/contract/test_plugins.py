"""A step of another package, installed by entry point: the README's own example, word for word."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from installed import run_with as run
from lmm_classifier.api.build_index import build_index
from lmm_classifier.models.spec import ModelSpec
from synthetic import COLOURS, picture, write_corpus

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder to put on the path, with the package as pip would leave it."""
    code = next(
        block
        for block in re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.S)
        if "(Step)" in block
    )
    entry = re.search(r"(\w+ = \"my_package:\w+\")", README.read_text("utf-8"))
    assert entry is not None
    folder = tmp_path / "site"
    (folder / "my_package-1.0.dist-info").mkdir(parents=True)
    (folder / "my_package.py").write_text(code)
    (folder / "my_package-1.0.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: my_package\nVersion: 1.0\n"
    )
    (folder / "my_package-1.0.dist-info/entry_points.txt").write_text(
        f"[lmm_classifier.steps]\n{entry[1].replace(chr(34), '')}\n"
    )
    return folder


SETTINGS = """
pipeline:
- embed: {encoder: {family: fake}}
- retrieve: {index: index}
- vote: {}
- discount: {labels: [red], factor: 0.25}
- open_set: {confidence_threshold: 0.5, open_set_threshold: 0.1}
"""
IN_PYTHON = """
import json
from lmm_classifier import PipelineConfig
from lmm_classifier.api.serialize import serialize_sample
from my_package import Discount
pipeline = PipelineConfig.from_yaml("s.yaml").build()
assert pipeline.steps[3] == Discount(labels=("red",), factor=0.25)
print(json.dumps(serialize_sample(next(pipeline.run_files(["photo.png"])))))
"""


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with an index, a photo and settings."""
    build_index(write_corpus(tmp_path / "corpus"), tmp_path / "index", encoder=ModelSpec("fake"))
    picture(COLOURS["red"], seed=1).save(tmp_path / "photo.png")
    (tmp_path / "s.yaml").write_text(SETTINGS)
    return tmp_path


def test_the_readmes_step_answers_the_same_through_every_door(package: Path, work: Path) -> None:
    shell = run(package, work, "-m", "lmm_classifier", "pipeline", "photo.png", "-c", "s.yaml")
    python = run(package, work, "-c", IN_PYTHON)
    answers = [json.loads(result.stdout) for result in (shell, python)]
    for answer in answers:
        assert set(answer.pop("timings")) == {"embed", "retrieve", "vote", "discount", "open_set"}
    assert answers[0] == answers[1]
    listed = json.loads(run(package, work, "-m", "lmm_classifier", "steps", "--json").stdout)
    [entry] = [entry for entry in listed if entry["name"] == "discount"]
    assert entry["parameters"] == ["labels: list of string (default [])", "factor: number (default 0.5)"]
    assert entry["summary"] == "Lower the evidence for labels that are rare where the photos come from."
    alone = run(package, work, "-m", "lmm_classifier", "run", "discount", "photo.png")
    assert alone.returncode == 1
    assert "'discount' needs scores" in alone.stderr


def test_the_readmes_step_works_in_settings(package: Path, work: Path) -> None:
    tmp_path, settings = work, SETTINGS
    scores = []
    for text in (settings, settings.replace("0.25", "1")):
        (tmp_path / "s.yaml").write_text(text)
        result = run(package, tmp_path, "-m", "lmm_classifier", "classify", "photo.png", "-c", "s.yaml")
        assert result.returncode == 0, result.stderr
        scores.append({c["label"]: c["score"] for c in json.loads(result.stdout)["candidates"]}["red"])
    assert scores[0] == pytest.approx(0.25 * scores[1])
    (tmp_path / "s.yaml").write_text(settings.replace("factor", "fcator"))
    result = run(package, tmp_path, "-m", "lmm_classifier", "config", "check", "s.yaml")
    assert (result.returncode, "did you mean 'factor'" in result.stderr) == (1, True)


def test_the_battery_holds_an_installed_step_to_the_contract(package: Path) -> None:
    battery = str(Path(__file__).with_name("test_steps.py"))
    options = ("-q", "-n", "0", "-p", "no:cacheprovider", "-k", "discount")
    result = run(package, README.parent, "-m", "pytest", *options, battery)
    assert result.returncode == 0, result.stdout
    assert "5 passed" in result.stdout
