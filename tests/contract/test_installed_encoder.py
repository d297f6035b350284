"""An encoder of another package, really installed by pip: our code is not touched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from installed import install
from installed import run_with as run
from synthetic import COLOURS, picture, write_corpus

CODE = '''
"""The mean colour of a photo: three numbers."""

import numpy as np

from lmm_classifier.types import EncoderContract


class MeanColourEncoder:
    def __init__(self, spec):
        self._spec = spec

    @property
    def contract(self):
        return EncoderContract("mean-colour", self._spec.weights, "", "", "{}", 3, "float32")

    def encode(self, images):
        rows = np.empty((len(images), 3), np.float32)
        for row, image in zip(rows, images, strict=True):
            row[:] = np.asarray(image, np.float32).mean(axis=(0, 1)) + 1
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)
'''
SETTINGS = """
encoder: {family: mean-colour}
retrieval: {index_path: index, top_k: 3}
rerank: {enabled: false}
allow_unknown: false
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that pip installed the package into."""
    root = tmp_path_factory.mktemp("plugin")
    return install(root, "encoder", "mean-colour", "MeanColourEncoder", CODE)


def test_it_builds_an_index_and_classifies_through_the_command_line(site: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    picture(COLOURS["red"], seed=1).save(tmp_path / "photo.png")
    (tmp_path / "s.yaml").write_text(SETTINGS)
    cli = ("-m", "lmm_classifier")
    built = run(site, tmp_path, *cli, "index", "build", "corpus", "-o", "index", "--encoder", "mean-colour")
    assert built.returncode == 0, built.stderr
    info = run(site, tmp_path, *cli, "index", "info", "index", "--json")
    assert json.loads(info.stdout)["encoders"][0]["name"] == "mean-colour"
    answer = run(site, tmp_path, *cli, "classify", "photo.png", "-c", "s.yaml")
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["label"] == "red"


def test_the_contract_battery_finds_it(site: Path) -> None:
    battery = str(Path(__file__).with_name("test_encoders.py"))
    root = Path(__file__).parents[2]
    result = run(
        site, root, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-k", "mean-colour", battery
    )
    assert result.returncode == 0, result.stdout
    assert "7 passed" in result.stdout


def test_without_the_package_its_name_is_unknown(site: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    command = ("index", "build", "corpus", "-o", "index", "--encoder", "mean-colour")
    result = run(tmp_path, tmp_path, "-m", "lmm_classifier", *command)
    assert result.returncode == 1
    assert "unknown encoder 'mean-colour'" in result.stderr
    assert "Traceback" not in result.stderr
