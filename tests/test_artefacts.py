"""What version 0.1 wrote is read today, and gives the answers and figures that it gave then.

`artefacts/v0.1` was written by that version: the demo's index and calibration, a labelling run with proposed
groups and the decisions of two reviewers, a store of collection classifiers, and what the commands printed.
"""

from __future__ import annotations

import json
import shutil
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from lmm_classifier import CollectionClassifier, HybridClassifier, evaluate, read_corpus
from lmm_classifier.checkpoints.digits import write_digits
from lmm_classifier.index.verify import problems_of
from lmm_classifier.labelling.agreed_labels import accepted_photos
from lmm_classifier.labelling.annotations import Annotations
from lmm_classifier.labelling.cluster_store import read_groups
from lmm_classifier.labelling.run_store import LabellingRun
from lmm_classifier.models.loading import load_encoder
from lmm_classifier.models.spec import ModelSpec

KEPT = Path(__file__).with_name("artefacts") / "v0.1"
FIGURES = ("counts", "known", "unknown", "confidence", "rerank", "stages", "labels", "confusion")
TRAINED_WITH = "783cb6d92731119e"
CLOSE = 1e-5  # between processors; on the one that wrote them they are the same to the last digit


def differences(found: Any, expected: Any, where: str = "") -> list[str]:
    """What was there and is not, or is another value; numbers may differ by rounding."""
    if isinstance(expected, dict):
        gone = [f"{where}.{key} is gone" for key in expected.keys() - found.keys()]
        both = ((key, expected[key]) for key in expected.keys() & found.keys())
        return [*gone, *chain(*(differences(found[key], value, f"{where}.{key}") for key, value in both))]
    if isinstance(expected, list):
        if len(found) != len(expected):
            return [f"{where} has {len(found)} entries instead of {len(expected)}"]
        pairs = enumerate(zip(found, expected, strict=True))
        return list(chain(*(differences(one, other, f"{where}[{i}]") for i, (one, other) in pairs)))
    is_same = found == (pytest.approx(expected, abs=CLOSE) if isinstance(expected, float) else expected)
    return [] if is_same else [f"{where} is {found!r} instead of {expected!r}"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the artefacts, beside the photos they are of."""
    folder = tmp_path_factory.mktemp("artefacts") / "v0.1"
    shutil.copytree(KEPT, folder)
    write_digits(folder / "digits")
    return folder


@pytest.fixture(scope="module")
def classifier(home: Path) -> HybridClassifier:
    return HybridClassifier.from_yaml(home / "config.yaml")


def photo(home: Path, source: str) -> Path:
    """`sample/eight/1865360bcd4899f8.png` among the photos of the demo that are asked about."""
    [found] = (home / "digits").glob(f"query*/{source.removeprefix('sample/')}")
    return found


def test_an_index_is_whole(home: Path) -> None:
    before = {path: path.read_bytes() for path in (home / "index").rglob("*") if path.is_file()}
    assert problems_of(home / "index") == []
    assert {path: path.read_bytes() for path in (home / "index").rglob("*") if path.is_file()} == before


def test_an_index_with_its_calibration_gives_the_same_answers(
    home: Path, classifier: HybridClassifier
) -> None:
    lines = (home / "answers.jsonl").read_text("utf-8").splitlines()
    expected = [json.loads(line) for line in lines]
    found = classifier.classify_batch([photo(home, answer["source"]) for answer in expected])
    assert len(found) == 46
    for answer, before in zip(found, expected, strict=True):
        for of_a_run in ("source", "timings"):
            del before[of_a_run]
        assert differences(answer.to_dict(), before) == [], answer.source


def test_an_evaluation_gives_the_same_figures(home: Path, classifier: HybridClassifier) -> None:
    expected = json.loads((home / "evaluation.json").read_text("utf-8"))
    known, near = (read_corpus(home / "digits" / name) for name in ("query", "query_unknown"))
    found = evaluate(classifier, known, near=near, resamples=50).to_dict()
    assert differences(found, {name: expected[name] for name in FIGURES}) == []


def test_a_labelling_run_is_read_with_its_groups_and_decisions(home: Path) -> None:
    run = LabellingRun(home / "run")
    assert len(run) == 46
    answers = [json.loads(line) for line in (home / "answers.jsonl").read_text("utf-8").splitlines()]
    labels = {answer["source"].removeprefix("sample/"): answer["label"] for answer in answers}
    rows = run.columns("path", "label").to_pylist()
    assert {row["path"]: row["label"] for row in rows} == labels
    [group] = read_groups(run) or ()
    assert group.members == (26, 30, 5, 1, 29, 0, 34)
    annotations = Annotations(run.folder)
    annotations.read()
    said = {
        path: {who: d.label or d.action for who, d in by.items()}
        for (path, _), by in annotations.photos().items()
    }
    assert said == {
        "eight/1865360bcd4899f8.png": {"anna": "eight", "Ben Ä": "eight"},
        "eight/1de3ff99e6b321e8.png": {"anna": "eight", "Ben Ä": "nine"},
        "eight/2ff1dd9c714cb328.png": {"anna": "eight"},
        "eight/30ae712fbb715e18.png": {"anna": "eight"},
        "eight/6789858870617728.png": {"anna": "eight"},
        "eight/9070cc21f95ac118.png": {"anna": "reject"},
    }
    agreed = accepted_photos(run)
    assert agreed.rejected == 1
    assert agreed.conflicts == ("eight/1de3ff99e6b321e8.png: Ben Ä says nine, anna says eight",)
    assert len(agreed.items) + len(agreed.gone) == 4  # gone, unless the photos lie where they lay


def test_collection_classifiers_give_the_same_answers(home: Path) -> None:
    """With the scikit-image they were trained with; another one makes other vectors, and they say so."""
    expected = json.loads((home / "collections.json").read_text("utf-8"))
    store = CollectionClassifier(home / "trained_classifiers")
    assert len(expected) == 8
    is_the_same = load_encoder(ModelSpec("descriptor")).contract.fingerprint == TRAINED_WITH
    for source, before in expected.items():
        found = store.classify(photo(home, source))
        if is_the_same:
            told = [[a.collection, a.status, a.is_in_collection, a.probability] for a in found]
            assert differences(told, before) == [], source
        else:
            assert {answer.code for answer in found} == {"encoder_mismatch"}
