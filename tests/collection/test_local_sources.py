"""Training data on this machine: folders, tables, arrays."""

from __future__ import annotations

import hashlib
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lmm_classifier import CollectionClassifier
from lmm_classifier.api.build_index import build_index
from lmm_classifier.collection.sources.source import SourceOptions, read_source
from lmm_classifier.collection.train import train
from lmm_classifier.collection.training_set import SkippedCollection, TrainingSet
from lmm_classifier.errors import CollectionError, ConfigError, CorpusError
from lmm_classifier.index.search import open_index
from lmm_classifier.models.loading import load_encoder
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.regions import RegionSelector
from synthetic import COLOURS, picture, write_corpus

FAKE = ModelSpec("fake")
PHOTOS = SourceOptions({"fake": FAKE})


def sets(
    source: Path | str, options: SourceOptions = PHOTOS, notes: list[str] | None = None
) -> list[TrainingSet]:
    found = list(read_source(str(source), options, [] if notes is None else notes))
    assert all(isinstance(each, TrainingSet) for each in found)
    return found  # type: ignore[return-value]


def test_each_folder_is_a_collection_against_the_rest(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    found = sets(corpus)
    assert [s.collection for s in found] == sorted(COLOURS)
    paths = sorted(corpus.rglob("*.png"))
    assert found[0].items == tuple(hashlib.sha256(p.read_bytes()).hexdigest() for p in paths)
    np.testing.assert_array_equal(found[2].labels, [p.parent.name == "red" for p in paths])
    expected = load_encoder(FAKE).encode([Image.open(p).convert("RGB") for p in paths])
    np.testing.assert_allclose(found[0].vectors, expected, atol=1e-6)
    assert found[0].parts[0].fingerprint == load_encoder(FAKE).contract.fingerprint


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_table_of_paths_and_labels(tmp_path: Path, suffix: str) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    rows = [(f"corpus/{p.relative_to(corpus)}", p.parent.name) for p in sorted(corpus.rglob("*.png"))]
    table = tmp_path / f"table{suffix}"
    lines = (
        [f"{p},{c}" for p, c in rows]
        if suffix == ".csv"
        else [f'{{"path": "{p}", "label": "{c}"}}' for p, c in rows]
    )
    table.write_text("\n".join([*(["path,label"] if suffix == ".csv" else []), *lines]))
    for one, other in zip(sets(table), sets(corpus), strict=True):
        assert (one.collection, one.items) == (other.collection, other.items)
        np.testing.assert_array_equal(one.vectors, other.vectors)


def test_a_photo_under_two_labels_belongs_to_both_and_copies_count_once(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    shutil.copy(corpus / "red/0.png", corpus / "red/copy.png")
    shutil.copy(corpus / "red/0.png", corpus / "blue/too.png")
    digest = hashlib.sha256((corpus / "red/0.png").read_bytes()).hexdigest()
    found = {s.collection: s for s in sets(corpus)}
    row = found["red"].items.index(digest)
    assert len(found["red"].items) == 18
    assert (found["red"].labels[row], found["blue"].labels[row], found["green"].labels[row]) == (
        True,
        True,
        False,
    )


def test_what_cannot_be_read_or_lacks_the_region_is_left_out_and_named(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    (corpus / "red/bad.png").write_bytes(b"x")
    Image.new("RGB", (24, 24)).save(corpus / "red/dark.png")
    notes: list[str] = []
    where = RegionSelector("prominent_person", persons=FAKE)
    found = sets(corpus, SourceOptions({"fake": FAKE}, where=where), notes)
    assert sorted(note.split(":")[0] for note in notes if "bad" in note or "dark" in note) == [
        "red/bad.png",
        "red/dark.png",
    ]
    assert any(note.endswith("no person was found [no_person]") for note in notes)
    assert all(s.derivative_type == "prominent_person" for s in found)


def test_several_encoders_are_joined(tmp_path: Path) -> None:
    options = SourceOptions({"a": FAKE, "b": ModelSpec("descriptor")})
    [first, *_] = sets(write_corpus(tmp_path / "corpus"), options)
    assert first.embedding_type == "a+b"
    dims = [part.dimensionality for part in first.parts]
    assert first.vectors.shape == (18, sum(dims))
    np.testing.assert_allclose(np.linalg.norm(first.vectors[:, : dims[0]], axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(first.vectors[:, dims[0] :], axis=1), 1, atol=1e-5)


def test_the_arrays_of_an_exported_index_bring_their_encoder(tmp_path: Path) -> None:
    build_index(write_corpus(tmp_path / "corpus", per_label=30), tmp_path / "index.npz", encoder=FAKE)
    report = train(read_source(str(tmp_path / "index.npz"), SourceOptions(), []), tmp_path / "store")
    assert [t.best.collection for t in report.trained] == sorted(COLOURS)
    answers = CollectionClassifier(tmp_path / "store").classify(picture(COLOURS["red"], seed=999))
    assert [a.is_in_collection for a in answers] == [False, False, True]
    assert len(open_index(tmp_path / "index.npz")) == 90


def test_arrays_of_ones_own(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    labels = np.asarray(["x", "y", "x", "y", "x", "z"])
    np.savez(tmp_path / "a.npz", embeddings=vectors, labels=labels, ids=np.asarray([3, 1, 4, 1, 5, 9]))
    with pytest.raises(CollectionError, match="two different embeddings"):
        sets(tmp_path / "a.npz", SourceOptions(embedding_type="mine"))
    vectors[3] = vectors[1]
    np.savez(tmp_path / "a.npz", embeddings=vectors, labels=labels, ids=np.asarray([3, 1, 4, 1, 5, 9]))
    found = sets(
        tmp_path / "a.npz", SourceOptions(embedding_type="mine", where=RegionSelector("prominent_face"))
    )
    assert [s.collection for s in found] == ["x", "y", "z"]
    assert found[0].items == ("3", "1", "4", "5", "9")
    np.testing.assert_array_equal(found[0].labels, [True, False, True, True, False])
    assert (found[0].embedding_type, found[0].derivative_type) == ("mine", "prominent_face")
    with pytest.raises(ConfigError, match="whose vectors"):
        sets(tmp_path / "a.npz", SourceOptions())
    with pytest.raises(CollectionError, match="4 dimensions, those of encoder fake"):
        sets(tmp_path / "a.npz", PHOTOS)


def test_arrays_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    good = {"embeddings": np.ones((2, 3)), "labels": np.asarray(["a", "b"])}
    wrong = [
        ({"labels": good["labels"]}, "no array 'embeddings'"),
        ({**good, "embeddings": np.ones(3)}, r"must be \(n, d\)"),
        ({**good, "embeddings": np.full((2, 3), np.nan)}, "no finite"),
        ({**good, "labels": np.asarray(["a"])}, "2 embeddings, 1 labels"),
        ({**good, "labels": np.asarray([{"a"}, {"b"}], object)}, "without pickle"),
        ({**good, "encoder": np.asarray("{}")}, "no contract"),
    ]
    for arrays, says in wrong:
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        path.write_bytes(buffer.getvalue())
        with pytest.raises(CollectionError, match=says):
            sets(path, SourceOptions(embedding_type="x"))
    path.write_bytes(buffer.getvalue()[:-40])
    with pytest.raises(CollectionError, match="no readable"):
        sets(path, SourceOptions(embedding_type="x"))


def test_only_what_is_asked_for(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    assert [s.collection for s in sets(corpus, SourceOptions({"fake": FAKE}, only=("red",)))] == ["red"]
    with pytest.raises(CollectionError, match="no collection 'pink'"):
        sets(corpus, SourceOptions({"fake": FAKE}, only=("pink",)))


def test_a_name_that_no_text_can_hold(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    (corpus / "red").rename(corpus / "r\udce9d")
    found = list(read_source(str(corpus), PHOTOS, []))
    assert [type(each) for each in found] == [TrainingSet, TrainingSet, SkippedCollection]
    assert "printable" in found[2].reason


@pytest.mark.parametrize(
    ("source", "options", "error"),
    [
        ("nowhere", PHOTOS, CorpusError),
        ("corpus", SourceOptions(), ConfigError),
        ("corpus", SourceOptions({"fake": FAKE}, embedding_type="x"), ConfigError),
        ("corpus", SourceOptions({"fake": FAKE}, embedding_types={"red": "x"}), ConfigError),
        ("corpus", SourceOptions({"fake": FAKE}, where=RegionSelector(padding=0.2)), ConfigError),
        ("http://127.0.0.1", SourceOptions(embedding_type="x"), ConfigError),
    ],
)
def test_options_that_mean_nothing_are_refused(
    tmp_path: Path, source: str, options: SourceOptions, error
) -> None:
    write_corpus(tmp_path / "corpus")
    with pytest.raises(error):
        sets(source if "://" in source else tmp_path / source, options)
