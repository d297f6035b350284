"""`run`, `pipeline` and `steps` as a shell runs them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageOps

from lmm_classifier.models.loading import load_encoder
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.pipeline import Pipeline
from lmm_classifier.regions import RegionSelector
from lmm_classifier.registry import names
from lmm_classifier.steps.embed import Embed
from lmm_classifier.types import Sample
from shell import run


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for name in ("astronaut", "coffee"):
        Image.fromarray(getattr(skimage.data, name)()).convert("RGB").save(folder / f"{name}.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xffno photo")
    return folder


def test_a_step_says_where_it_looked_and_what_it_found(photos: Path) -> None:
    result = run("run", "detect", "astronaut.png", "coffee.png", "-p", "model.family=mtcnn", cwd=photos)
    assert result.returncode == 0, result.stderr
    astronaut, coffee = map(json.loads, result.stdout.splitlines())
    assert (astronaut["source"], astronaut["width"], astronaut["height"]) == ("astronaut.png", 512, 512)
    [face] = [region for region in astronaut["regions"] if region["kind"] == "face"]
    np.testing.assert_allclose(face["box"], (181, 62, 267, 172), atol=2)
    assert face["score"] > 0.99
    assert [region["kind"] for region in coffee["regions"]] == ["image"]


def test_the_shell_gives_the_vector_that_python_gives(photos: Path) -> None:
    where = ["-w", "target=prominent_face", "-w", "face_context=whole_image", "-w", "padding=0.2"]
    result = run(
        "run", "embed", "astronaut.png", "coffee.png", "-p", "encoder={family: fake}", *where, cwd=photos
    )
    assert result.returncode == 0, result.stderr
    astronaut, coffee = map(json.loads, result.stdout.splitlines())
    line = (*RegionSelector("prominent_face", "whole_image", padding=0.2).steps(), Embed(ModelSpec("fake")))
    with Image.open(photos / "astronaut.png") as image:
        [sample] = Pipeline(line).run([Sample.from_image("x", image.convert("RGB"))])
        assert sample.target is not None
        box = sample.target.box
        cut = image.crop(box)
        side = max(cut.size)
        square = ImageOps.pad(cut, (side, side), method=Image.Resampling.NEAREST, color=(124, 116, 104))
    [[vector]] = astronaut["embeddings"].values()
    np.testing.assert_allclose(vector, next(iter(sample.embeddings.values()))[0], atol=1e-6)
    np.testing.assert_allclose(vector, load_encoder(ModelSpec("fake")).encode([square])[0], atol=2e-3)
    assert astronaut["target"]["box"] == list(box)
    assert astronaut["target"]["fallback"] is None
    assert coffee["skipped"] == {"code": "no_face", "reason": "no face was found"}
    assert "embeddings" not in coffee


def test_photos_that_cannot_be_read_are_lines_with_a_code(photos: Path) -> None:
    embed = ("run", "embed", "-p", "encoder.family=fake")
    result = run(*embed, "broken.jpg", "coffee.png", "nowhere.png", cwd=photos)
    assert result.returncode == 2
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line.get("code") for line in lines] == ["corrupt", None, "not_found"]
    assert run(*embed, "broken.jpg", cwd=photos).returncode == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "detekt", "coffee.png"], "unknown step 'detekt'; did you mean 'detect'?"),
        (["run", "detect", "coffee.png", "-p", "modle.family=mtcnn"], "did you mean 'model'?"),
        (["run", "detect", "coffee.png", "-p", "model.famly=mtcnn"], "did you mean 'family'?"),
        (["run", "detect", "coffee.png", "-p", "model"], "must be written key=value"),
        (["run", "detect", "coffee.png", "-p", "model.family=mtcnn", "-p", "model.family=x"], "given twice"),
        (["run", "detect", "coffee.png", "-p", "model=mtcnn", "-p", "model.family=x"], "inside 'model'"),
        (["run", "detect", "coffee.png", "-p", "model.family=mtcnn", "-p", "min_score=2"], "min_score"),
        (["run", "detect", "coffee.png", "-p", "model={"], "not valid YAML"),
        (["run", "vote", "coffee.png"], "'vote' needs embeddings, neighbours"),
        (
            ["run", "embed", "coffee.png", "-p", "encoder.family=fake", "-w", "target=nobody"],
            "target: Input should be",
        ),
        (["run", "embed", "coffee.png", "-p", "encoder.family=fake", "-w", "padding=-1"], "padding"),
        (
            ["run", "embed", "coffee.png", "-p", "encoder.family=fake", "-w", "target=prominent_person"],
            "HF_HUB_OFFLINE is set",
        ),
        (
            ["run", "segment", "coffee.png", "-p", "model.family=fake", "-p", "points=[[5000, 5]]"],
            "coffee.png: point (5000, 5) is outside what is looked at, (0, 0, 600, 400)",
        ),
        (
            ["run", "segment", "coffee.png", "-p", "model.family=fake", "-p", "box=[5, 5, 0, 9]"],
            "box [5.0, 5.0, 0.0, 9.0] is empty as xywh",
        ),
        (
            ["run", "segment", "coffee.png", "-p", "model.family=fake", "-p", "box=[5, 5, -4, 9]"],
            "box [5.0, 5.0, -4.0, 9.0] is empty as xywh",
        ),
        (
            ["run", "label", "coffee.png", "-p", "model.family=image-classifier"],
            "'facebook/convnext-tiny-224' is neither",
        ),
        (["pipeline", "coffee.png", "-c", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_what_is_wrong_is_one_line(photos: Path, arguments: list[str], said: str) -> None:
    result = run(*arguments, cwd=photos)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    assert said in result.stderr


def test_a_pipeline_from_yaml(photos: Path) -> None:
    (photos / "s.yaml").write_text(
        "pipeline:\n"
        "- detect: {model: {family: mtcnn}, labels: [face]}\n"
        "- focus: {kind: face, on_missing: fallback}\n"
        "- embed: {encoder: {family: fake}}\n"
    )
    result = run("pipeline", "astronaut.png", "coffee.png", "-c", "s.yaml", cwd=photos)
    assert result.returncode == 0, result.stderr
    astronaut, coffee = map(json.loads, result.stdout.splitlines())
    assert astronaut["target"]["wanted"] == "face"
    assert coffee["target"]["fallback"] == "no face was found"
    assert all(set(answer["timings"]) == {"detect", "focus", "embed"} for answer in (astronaut, coffee))


def test_all_steps_are_listed_with_their_parameters(photos: Path) -> None:
    entries = json.loads(run("steps", "--json", cwd=photos).stdout)
    assert [entry["name"] for entry in entries] == list(names("step"))
    focus = next(entry for entry in entries if entry["name"] == "focus")
    assert focus["schema"]["properties"]["prominence"]["enum"] == ["score", "largest", "score_area"]
    text = run("steps", cwd=photos).stdout
    assert "padding: number (default 0.0)" in text
    assert "detect: Find things in the photo" in text
