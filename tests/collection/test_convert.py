"""Old pickles into the new format: only when told to, in a process of its own, which makes nothing else."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import joblib
import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

from lmm_classifier import CollectionClassifier
from lmm_classifier.collection.convert import convert_pickles
from lmm_classifier.collection.store import BEST, Store
from lmm_classifier.errors import CollectionError
from lmm_classifier.models.loading import load_encoder
from lmm_classifier.models.spec import ModelSpec
from shell import run
from synthetic import COLOURS, picture
from training_sets import of_colour, trained

FAKE = ModelSpec("fake")
RED, BLUE = picture(COLOURS["red"], seed=1000), picture(COLOURS["blue"], seed=1001)


class Bomb:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return (os.mkdir, (str(self.canary),))


def fitted(labels: np.ndarray | None = None) -> LogisticRegression:
    """As the old script made it."""
    data = of_colour("7")
    model = LogisticRegression(C=0.1, solver="liblinear", class_weight="balanced", random_state=42)
    return model.fit(data.vectors, data.labels if labels is None else labels)


def old_store(folder: Path, dump, model: object, **more: object) -> Path:
    folder.mkdir()
    entry = {
        "model_file": "old.pkl",
        "derivative_type": "whole_image",
        "embedding_type": "fake",
        "dimensionality": 48,
    }
    with (folder / "old.pkl").open("wb") as file:
        dump(model, file)
    (folder / BEST).write_text(json.dumps({"7": {**entry, **more}, "other": "gone.pkl"}))
    return folder


def plain(model: object, file) -> None:
    pickle.dump(model, file, protocol=4)


@pytest.mark.parametrize("dump", [joblib.dump, plain])
@pytest.mark.parametrize("labels", [None, np.arange(90) % 3])
def test_both_kinds_of_old_files_answer_as_before_once_converted(tmp_path: Path, dump, labels) -> None:
    model = fitted(None if labels is None else (labels == 2).astype(int))
    store = old_store(tmp_path / "store", dump, model)
    converted, failed = convert_pickles(store)
    assert list(converted) == ["7"]
    assert list(failed) == ["other"]
    [vector] = load_encoder(FAKE).encode([RED])
    [answer] = CollectionClassifier(store).classify(RED, [7])
    assert answer.probability == pytest.approx(
        model.predict_proba(vector[None].astype(float))[0, 1], abs=1e-6
    )
    assert (store / "old.pkl").exists()
    assert convert_pickles(store) == ({}, failed)  # what is converted stays


def test_a_converted_classifier_gives_way_to_one_trained_here(tmp_path: Path) -> None:
    """It may have seen the held-out items: its figures would not be fair."""
    store = old_store(tmp_path / "store", joblib.dump, fitted())
    convert_pickles(store)
    assert CollectionClassifier(store).classify(BLUE, [7])[0].is_in_collection is False
    [result] = trained(store, of_colour("7"))
    assert result.best.split == "sha256"
    assert "may have seen" in result.ranking[1].reason


@pytest.mark.parametrize("dump", [joblib.dump, plain])
def test_a_file_with_anything_else_in_it_is_refused_and_does_nothing(tmp_path: Path, dump) -> None:
    canary = tmp_path / "canary"
    evil = [
        Bomb(canary),
        np.asarray([Bomb(canary)], object),
        RandomForestClassifier(2).fit([[0], [1]], [0, 1]),
    ]
    hidden = fitted()
    hidden.classes_ = np.asarray([Bomb(canary), Bomb(canary)], object)
    for number, model in enumerate([*evil, hidden]):
        store = old_store(tmp_path / f"{number}", dump, model)
        before = (store / BEST).read_bytes()
        converted, failed = convert_pickles(store)
        assert converted == {}
        assert "cannot be converted" in failed["7"]
        assert "\n" not in failed["7"]
        assert not canary.exists()
        assert (store / BEST).read_bytes() == before


def test_what_is_no_binary_classifier_or_no_number_is_refused(tmp_path: Path) -> None:
    data = of_colour("7")
    several = LogisticRegression().fit(data.vectors, np.arange(90) % 3)
    broken = fitted()
    broken.coef_ = broken.coef_ * np.nan
    for number, model in enumerate([several, broken, "text", None]):
        _, failed = convert_pickles(old_store(tmp_path / f"{number}", joblib.dump, model))
        assert "old.pkl" in failed["7"]
    _, failed = convert_pickles(old_store(tmp_path / "d", joblib.dump, fitted(), dimensionality=512))
    assert "48 dimensions, its entry says 512" in failed["7"]
    _, failed = convert_pickles(old_store(tmp_path / "e", joblib.dump, fitted(), model_file="../old.pkl"))
    assert "no file of the store" in failed["7"]


def test_the_shell_asks_for_trust(tmp_path: Path) -> None:
    store = old_store(tmp_path / "store", joblib.dump, fitted())
    refused = run("collections", "convert", "--store", store, cwd=tmp_path)
    assert refused.returncode == 1
    assert "--i-trust-these-files" in refused.stderr
    assert Store(store).metadata(7)["model_file"] == "old.pkl"
    told = run("collections", "convert", "--store", store, "--i-trust-these-files", cwd=tmp_path)
    assert told.returncode == 2
    assert told.stdout.startswith("collection 7: collection_7_classifier_")
    assert told.stderr.startswith("failed: collection other: ")
    with pytest.raises(CollectionError, match="no such store"):
        convert_pickles(tmp_path / "nowhere")
