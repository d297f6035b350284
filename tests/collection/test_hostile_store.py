"""Artefacts that somebody else made or damaged: refused by name, nothing executed, the others answer."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import joblib
import numpy as np
import pytest
import safetensors.numpy

from lmm_classifier import CollectionClassifier
from lmm_classifier.collection.artifact import ClassifierArtifact, read_model, read_version
from lmm_classifier.collection.store import BEST, Store
from lmm_classifier.collection.train import TrainOptions
from lmm_classifier.errors import ClassifierFileError
from synthetic import COLOURS, picture
from training_sets import of_colour, trained

RED = picture(COLOURS["red"], seed=1000)


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return (os.mkdir, (str(self.canary),))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    trained(tmp_path / "store", of_colour("7"), of_colour("8"))
    return tmp_path / "store"


def rewrite(
    store: Path, change: Callable[[ClassifierArtifact], ClassifierArtifact], content: bytes | None = None
) -> Path:
    """Give collection 7 another entry, and its file another content, all seals right."""
    version = Store(store).snapshot().version(7)
    if content is not None:
        version = replace(version, sha256=hashlib.sha256(content).hexdigest(), size=len(content))
    version = change(version)
    best = json.loads((store / BEST).read_text())
    best["7"] = version.sealed()
    (store / BEST).write_text(json.dumps(best))
    path = store / version.model_file
    if content is not None:
        path.write_bytes(content)
    return path


def assert_refused(store: Path, says: str) -> None:
    """Collection 7 is refused, in one line, and collection 8 is not."""
    with pytest.raises(ClassifierFileError, match=says) as caught:
        CollectionClassifier(store).classify(RED, [7])
    assert "\n" not in str(caught.value)
    bad, good = CollectionClassifier(store).classify(RED)
    assert (bad.status, bad.code, bad.reason) == ("error", "bad_classifier_file", str(caught.value))
    assert (good.status, good.is_in_collection) == ("success", True)


def same(version: ClassifierArtifact) -> ClassifierArtifact:
    return version


@pytest.mark.parametrize("suffix", [".safetensors", ".skops"])
@pytest.mark.parametrize("dump", [pickle.dump, joblib.dump])
def test_a_pickle_by_another_name(store: Path, tmp_path: Path, dump, suffix: str) -> None:
    buffer = io.BytesIO()
    dump(Bomb(tmp_path / "canary"), buffer)
    name = f"collection_7_classifier_2026-01-01_000000{suffix}"
    rewrite(store, lambda v: replace(v, model_file=name), buffer.getvalue())
    assert_refused(store, name)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["a.pkl", "a.PKL", "a.joblib", "a.pickle"])
def test_a_pickle_by_its_name(store: Path, tmp_path: Path, name: str) -> None:
    (store / name).write_bytes(pickle.dumps(Bomb(tmp_path / "canary")))
    best = json.loads((store / BEST).read_text())
    best["7"] = {"model_file": name, "derivative_type": "whole_image", "embedding_type": "fake"}
    (store / BEST).write_text(json.dumps(best))
    assert_refused(store, "a pickle: it could run any code.*collections convert")
    assert not (tmp_path / "canary").exists()


def test_a_classifier_of_an_estimator_that_is_gone(store: Path) -> None:
    """Version 0.1 kept `svc` and `random-forest` in skops files."""
    rewrite(store, lambda v: replace(v, model_file="collection_7_classifier_2026-01-01_000000.skops"), b"PK")
    assert_refused(store, "is of an estimator that is gone; train the collection again")


def arrays(weights, intercept=(0.0,), **more) -> bytes:
    made = {"weights": np.asarray(weights), "intercept": np.asarray(intercept), **more}
    return safetensors.numpy.save(made)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (arrays(np.ones(47)), r"weights \(48,\).*\(47,\)"),
        (arrays(np.ones((1, 48))), r"weights \(48,\)"),
        (arrays(np.full(48, np.nan)), "no finite"),
        (arrays(np.ones(48), [np.inf]), "no finite"),
        (arrays(np.ones(48, np.float32)), "no finite float64"),
        (arrays(np.ones(48), more=np.ones(1)), "intercept"),
        (safetensors.numpy.save({"weights": np.ones(48)}), "intercept"),
        (b"", "no safetensors"),
        ((1 << 62).to_bytes(8, "little") + b"{}", "no safetensors"),
        (b"\x10\0\0\0\0\0\0\0" + b"[" * 16, "no safetensors"),
    ],
)
def test_files_of_numbers_that_are_wrong(store: Path, content: bytes, says: str) -> None:
    rewrite(store, same, content)
    assert_refused(store, says)


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "..",
        "",
        ".",
        "sub/collection_7_classifier_2026-01-01_000000.safetensors",
        "collection_7_classifier_2026-01-01_000000.safetensors/../../x",
        "collection_7_classifier_2026-01-01_000000.safetensors\0",
        "collection_7_classifier_2026-01-01_000000.safetensors\n",
        "best_models.json",
        "C:\\x.safetensors",
    ],
)
def test_a_model_file_is_a_bare_name_in_the_store(store: Path, name: str) -> None:
    best = json.loads((store / BEST).read_text())
    version = replace(Store(store).snapshot().version(7), model_file=name)
    best["7"] = version.sealed()
    (store / BEST).write_text(json.dumps(best))
    assert_refused(store, "no model file of the store")


def test_a_link_out_of_the_store_is_not_followed(store: Path, tmp_path: Path) -> None:
    path = store / Store(store).snapshot().version(7).model_file
    shutil.move(path, tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert_refused(store, "no plain file")


def test_the_files_of_another_collection(store: Path) -> None:
    best = json.loads((store / BEST).read_text())
    best["7"] = best["8"]
    (store / BEST).write_text(json.dumps(best))
    assert_refused(store, "about collection '8'")


NO_NUMBERS = [
    (key, value)
    for key in ("threshold", "slope", "offset")
    for value in (float("nan"), float("inf"), "x", None)
]


@pytest.mark.parametrize(("key", "value"), [*NO_NUMBERS, ("threshold", 7), ("threshold", -0.1)])
def test_numbers_of_an_entry_that_are_none(store: Path, key: str, value: object) -> None:
    rewrite(store, lambda v: replace(v, **{key: value}))
    assert_refused(store, key)


def test_truncated_and_deep_json(store: Path) -> None:
    content = (store / BEST).read_bytes()
    for damaged in (content[:-30], b"", b"[" * 100_000, b"[]", b"null", content + b"x"):
        (store / BEST).write_bytes(damaged)
        with pytest.raises(ClassifierFileError, match=BEST):
            CollectionClassifier(store).classify(RED)
    (store / BEST).write_bytes(content)
    assert CollectionClassifier(store).classify(RED)[0].is_in_collection


def test_every_flipped_byte_is_found(store: Path) -> None:
    """Model files and JSON files, 300 flips and 60 cuts of each: refused, or the very same classifier."""
    path = next(store.glob("collection_7_*.safetensors"))
    version = read_version(path.with_suffix(".json"))
    weights = read_model(store, version).scores(np.eye(48, dtype=np.float32))
    chance = random.Random(0)  # noqa: S311
    for file in (path, path.with_suffix(".json")):
        content = file.read_bytes()
        for _ in range(360):
            damaged = bytearray(content)
            damaged[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            if chance.random() < 0.2:
                damaged = damaged[: chance.randrange(len(content))]
            file.write_bytes(damaged)
            try:
                found = read_version(path.with_suffix(".json"))
                scores = read_model(store, found).scores(np.eye(48, dtype=np.float32))
            except ClassifierFileError:
                continue
            assert found == version
            np.testing.assert_array_equal(scores, weights)
        file.write_bytes(content)


def test_every_flipped_byte_of_best_models_json_is_found(store: Path) -> None:
    content, chance = (store / BEST).read_bytes(), random.Random(1)  # noqa: S311
    right = {c: Store(store).snapshot().version(c) for c in "78"}
    for _ in range(300):
        damaged = bytearray(content)
        damaged[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        (store / BEST).write_bytes(damaged)
        try:
            snapshot = Store(store).snapshot()
        except ClassifierFileError:
            continue
        for collection in snapshot.ids:
            try:
                assert snapshot.version(collection) == right[collection]
            except ClassifierFileError:
                continue


def test_damaged_versions_do_not_stop_a_training(store: Path) -> None:
    [old] = store.glob("collection_7_*.safetensors")
    old.write_bytes(b"x")
    [result] = trained(store, of_colour("7"), options=TrainOptions())
    assert [bool(c.reason) for c in result.ranking] == [False, True]
    assert "damaged" in result.ranking[1].reason
    next(store.glob("collection_8_*.safetensors")).with_suffix(".json").write_text("{")
    [result] = trained(store, of_colour("8"))
    assert "no valid JSON" in result.ranking[1].reason.replace("not", "no")
