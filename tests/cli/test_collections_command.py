"""`collections` and `run classify` as a shell runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from collections_service import blobs, body, collection, data_path, records, serving
from shell import run
from synthetic import COLOURS, picture, write_corpus

VECTORS, LABELS = blobs(90, d=48)
GOOD = body(records(VECTORS, LABELS))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "photos", per_label=30)
    picture(COLOURS["red"], seed=5000).save(tmp_path / "red.png")
    return tmp_path


def test_photos_to_answers(work: Path) -> None:
    trained = run("collections", "train", "photos", "--encoder", "fake", cwd=work)
    assert (trained.returncode, trained.stderr) == (0, "")
    assert trained.stdout.splitlines()[-1] == "trained_classifiers: 3 collections trained, 0 skipped"
    assert trained.stdout.startswith("collection blue (blue): fake of whole_image, AP 1.000")
    listed = run("collections", "list", cwd=work)
    assert [line.split(" ")[0] for line in listed.stdout.splitlines()] == ["blue", "green", "red"]
    shown = json.loads(run("collections", "show", "red", "--json", cwd=work).stdout)
    assert (shown["embedding_type"], shown["dimensionality"]) == ("fake", 48)
    assert len(shown["comparison"]["versions"]) == 1
    assert "model_file: collection_red_classifier_" in run("collections", "show", "red", cwd=work).stdout
    means = json.loads(run("collections", "list", "--by-embedding-type", "--json", cwd=work).stdout)
    assert means["fake"]["collections"] == 3
    answer = run("run", "classify", "red.png", "-p", "collections=[red]", cwd=work)
    [membership] = json.loads(answer.stdout)["memberships"]
    assert (membership["collection"], membership["is_in_collection"]) == ("red", True)
    refused = run("run", "classify", "red.png", "-p", "collections=[pink]", cwd=work)
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: ")
    assert refused.stderr.count("\n") == 1


def test_a_service_with_good_and_bad_collections(work: Path) -> None:
    entries = [collection(1, "cats"), collection(2, "dogs"), {"id": 3, "name": "none"}]
    answers = {"/collections.json": body(entries), data_path(1): GOOD, data_path(2): b"<html>"}
    token = {"LMM_CLASSIFIER_COLLECTIONS_TOKEN": "secret"}
    with serving(answers) as server:
        result = run(
            "collections", "train", server.url, "--encoder", "clip=fake", "-s", "store", cwd=work, **token
        )
        assert {headers["Authorization"] for _, headers in server.asked} == {"Bearer secret"}
    assert result.returncode == 2
    assert "secret" not in result.stdout + result.stderr
    assert "skipped: collection 2 (dogs): " in result.stderr
    assert "skipped: collection 3 (none): it has no focus" in result.stderr
    assert "store: 1 collections trained, 2 skipped" in result.stdout
    listed = json.loads(run("collections", "list", "-s", "store", "--json", cwd=work).stdout)
    assert listed["1"]["parts"][0]["family"] == "fake"
    with serving({**answers, data_path(1): b"x"}) as server:
        failed = run("collections", "train", server.url, "-s", "store", "--json", cwd=work)
    assert failed.returncode == 1
    assert [s["collection"] for s in json.loads(failed.stdout)["skipped"]] == ["1", "2", "3"]
    assert json.loads(run("collections", "list", "-s", "store", "--json", cwd=work).stdout) == listed


def test_bad_entries_are_listed_with_what_is_wrong(work: Path) -> None:
    (work / "store").mkdir()
    (work / "store/best_models.json").write_text('{"7": "old.pkl", "8": 3}')
    result = run("collections", "list", "-s", "store", cwd=work)
    assert result.returncode == 2
    first, second = result.stdout.splitlines()
    assert first.startswith("7: clip of whole_image; not usable: ")
    assert "collections convert" in first
    assert second.startswith("8: ")
    assert run("collections", "show", "7", "-s", "store", cwd=work).returncode == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "nowhere", "--encoder", "fake"], "there is no such file or folder"),
        (["train", "photos"], "photos need an encoder"),
        (["train", "photos", "--encoder", "fak"], "nothing says which encoder makes 'fak'"),
        (["train", "photos", "--encoder", "a=fak"], "did you mean 'fake'"),
        (["train", "photos", "--encoder", "fake", "--metric", "f2"], "known: macro_precision"),
        (["train", "photos", "--encoder", "fake", "--estimator", "lad"], "did you mean 'lda'"),
        (["train", "photos", "--encoder", "fake", "--threshold", "nan"], "--threshold"),
        (["train", "photos", "--encoder", "fake", "-w", "target=left_ear"], "prominent_face"),
        (["train", "ftp://host/"], "bad_url"),
        (["list"], "holds no best_models.json; make one"),
        (["show", "7"], "holds no best_models.json"),
        (["convert"], "--i-trust-these-files"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_1(work: Path, arguments: list[str], says: str) -> None:
    result = run("collections", *arguments, cwd=work)
    assert result.returncode == 1
    assert says in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert not (work / "trained_classifiers").exists()
