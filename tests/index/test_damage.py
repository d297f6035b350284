"""Whatever happens to a file of an index, opening it says which file and never gives wrong answers."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fitted import write_fitted
from lmm_classifier.api.build_index import build_index
from lmm_classifier.decision.heads import HeadSettings
from lmm_classifier.errors import EncoderMismatchError, IndexFolderError
from lmm_classifier.index.calibration import CALIBRATION, read_calibration
from lmm_classifier.index.manifest import MANIFEST, read_manifest
from lmm_classifier.index.search import open_index
from lmm_classifier.index.shards import read_failures
from lmm_classifier.index.verify import problems_of
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.storage.atomic_files import replace_file
from synthetic import write_corpus

FILES = ("manifest.json", "shards/000000.npy", "shards/000000.parquet")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pristine")
    corpus = write_corpus(folder / "corpus")
    (corpus / "red/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    build_index(corpus, folder / "index", encoder=ModelSpec("fake"), max_bad_ratio=0.1)
    build_index(corpus, folder / "index.npz", encoder=ModelSpec("fake"), max_bad_ratio=0.1)
    return folder


@pytest.fixture
def index(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine / "index", tmp_path / "index"))


def damages(content: bytes, rng: np.random.Generator, n: int) -> list[bytes]:
    """Bit flips, cuts and zeroed runs."""
    copies = []
    for i in range(n):
        at = int(rng.integers(len(content)))
        copy = bytearray(content)
        if i % 3 == 0:
            copy[at] ^= 1 << int(rng.integers(8))
        elif i % 3 == 1:
            del copy[at:]
        else:
            copy[at : at + 64] = b"\0" * len(copy[at : at + 64])
        if bytes(copy) != content:
            copies.append(bytes(copy))
    return copies


COPIES = [
    pytest.param(90, id="90 copies"),
    pytest.param(450, id="450 copies", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("copies", COPIES)
@pytest.mark.parametrize("name", [*FILES, "calibration.json", "failures.jsonl"])
def test_every_damaged_file_is_refused_by_name(index: Path, name: str, copies: int) -> None:
    write_fitted(index)
    index = Path(shutil.copytree(index, index.with_name("damaged")))  # that nobody has opened
    content = (index / name).read_bytes()
    tried = 0
    for copy in damages(content, np.random.default_rng(7), copies):
        (index / name).write_bytes(copy)
        with pytest.raises(IndexFolderError) as error:
            open_everything(index)
        assert name.rpartition("/")[2] in str(error.value)
        assert "\n" not in str(error.value)
        tried += 1
    assert tried > copies * 2 / 3
    (index / name).write_bytes(content)
    open_everything(index)


def open_everything(index: Path) -> None:
    """What `index info` reads."""
    assert len(open_index(index)) == 18
    read_failures(index, read_manifest(index).files)
    assert read_calibration(index) is not None


@pytest.mark.parametrize("copies", COPIES)
def test_damaged_npz_is_refused_by_name(pristine: Path, tmp_path: Path, copies: int) -> None:
    content = (pristine / "index.npz").read_bytes()
    path = tmp_path / "copy.npz"
    refused = 0
    for copy in damages(content, np.random.default_rng(7), copies):
        path.write_bytes(copy)
        refused += _refused_or_equal(path, pristine / "index.npz")
    assert refused > copies * 2 / 3


def _refused_or_equal(path: Path, original: Path) -> bool:
    """Zip headers hold bytes that nobody reads, such as times: damage there changes nothing."""
    try:
        index = open_index(path)
    except IndexFolderError as error:
        return path.name in str(error)
    assert list(index.records) == list(open_index(original).records)
    everything = np.arange(18)
    found = [opened.vectors.take(everything) for opened in (index, open_index(original))]
    np.testing.assert_array_equal(*found)
    return False


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(index: Path, name: str) -> None:
    (index / name).unlink()
    with pytest.raises(IndexFolderError, match=name.rpartition("/")[2]):
        open_index(index)


def forge(index: Path, change: Callable[[dict], None]) -> None:
    """Rewrite the manifest as somebody would who also knows how to compute its digest."""
    body = json.loads((index / MANIFEST).read_bytes())
    del body["digest"]
    change(body)
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    (index / MANIFEST).write_text(json.dumps({**body, "digest": digest}))


def test_counts_that_disagree_are_refused(index: Path) -> None:
    forge(index, lambda body: body.update(count=17))
    with pytest.raises(IndexFolderError, match="manifest.json counts 17 vectors"):
        open_index(index)


def test_counts_that_agree_with_themselves_but_not_with_the_shards_are_refused(index: Path) -> None:
    forge(index, lambda body: body.update(count=17, labels={"red": 17}))
    with pytest.raises(IndexFolderError, match="counts 17 images, the shards hold 18"):
        open_index(index)


def test_a_newer_schema_asks_for_an_upgrade(index: Path) -> None:
    forge(index, lambda body: body.update(schema_version=99))
    with pytest.raises(IndexFolderError, match=r"schema version 99.*upgrade"):
        open_index(index)


def put(index: Path, name: str, vectors: np.ndarray) -> None:
    """Replace a shard's vectors and make the manifest agree with them."""
    np.save(index / name, vectors, allow_pickle=False)
    content = (index / name).read_bytes()
    record = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "rows": len(vectors)}
    forge(index, lambda body: body["files"].update({name: record}))


def test_a_shard_of_another_encoder_is_refused(index: Path) -> None:
    other = np.zeros((18, 2020), np.float32)
    other[:, 0] = 1
    put(index, "shards/000000.npy", other)
    with pytest.raises(IndexFolderError, match=r"000000\.npy is .*of another encoder"):
        open_index(index)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda vectors: vectors.__setitem__((3, 5), np.nan),
        lambda vectors: vectors.__setitem__((17, 0), np.inf),
        lambda vectors: vectors.__setitem__((0, 0), -np.inf),
    ],
)
def test_vectors_that_are_no_numbers_are_refused(index: Path, spoil: Callable[[np.ndarray], None]) -> None:
    vectors = np.load(index / "shards/000000.npy")
    spoil(vectors)
    put(index, "shards/000000.npy", vectors)
    with pytest.raises(IndexFolderError, match=r"000000\.npy holds vectors that are not finite"):
        open_index(index)
    assert any("not finite" in line for line in problems_of(index))


def test_vectors_that_are_not_unit_rows_are_found_by_verify(index: Path) -> None:
    put(index, "shards/000000.npy", 2 * np.load(index / "shards/000000.npy"))
    assert any("not unit rows" in line for line in problems_of(index))


@pytest.mark.parametrize(
    "tamper",
    [
        lambda body: body.update(count=19),
        lambda body: body["labels"].update(red=7),
        lambda body: body["labels"].update(red=5, blue=7),
        lambda body: body["files"]["shards/000000.npy"].update(rows=17),
        lambda body: body["files"]["shards/000000.parquet"].update(rows=17),
        lambda body: body["files"].pop("shards/000000.npy"),
        lambda body: body["files"].pop("shards/000000.parquet"),
        lambda body: body["spaces"][0]["encoder"].update(dim=47),
        lambda body: body["spaces"][0]["encoder"].update(name="siglip"),
        lambda body: body["spaces"].append(body["spaces"][0]),
        lambda body: body["spaces"][0]["search"].update(factory="IVF4,Flat"),
        lambda body: body.update(fingerprints=[]),
        lambda body: body.update(spaces=[]),
        lambda body: body.update(metric="l2"),
    ],
)
def test_parts_that_disagree_are_refused(index: Path, tamper: Callable[[dict], None]) -> None:
    forge(index, tamper)
    with pytest.raises(IndexFolderError) as error:
        open_index(index)
    assert "\n" not in str(error.value)
    assert str(index) in str(error.value)


def test_a_swapped_encoder_is_refused(index: Path) -> None:
    forge(index, lambda body: body["spaces"][0]["encoder"].update(preprocessing="other"))
    with pytest.raises(IndexFolderError, match="contradicts itself"):
        open_index(index)


def test_what_is_no_index_is_said_to_be_none(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "nowhere.npz"):
        with pytest.raises(IndexFolderError, match="not an index"):
            open_index(path)


def test_npz_that_needs_pickle_is_refused_and_not_executed(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (canary,))

    metadata = np.asarray([Evil()], dtype=object)
    np.savez(
        tmp_path / "old.npz", embeddings=np.ones((1, 4)), labels=["a"], metadata=metadata, metric="cosine"
    )
    with pytest.raises(IndexFolderError, match="old.npz"):
        open_index(tmp_path / "old.npz")
    assert not canary.exists()


def test_npz_that_hides_its_encoder_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", embeddings=np.ones((1, 4)), labels=["a"], metadata=["{}"], metric="cosine")
    with pytest.raises(IndexFolderError, match="which encoder"):
        open_index(tmp_path / "x.npz")


def test_npz_of_vectors_that_are_not_unit_is_refused(pristine: Path, tmp_path: Path) -> None:
    with np.load(pristine / "index.npz") as arrays:
        np.savez(tmp_path / "x.npz", **{**arrays, "embeddings": 5 * arrays["embeddings"]})
    with pytest.raises(IndexFolderError, match="unit rows"):
        open_index(tmp_path / "x.npz")


def test_calibration_round_trip_and_its_binding_to_the_index(index: Path) -> None:
    assert read_calibration(index) is None
    written = write_fitted(index)
    fitted = read_calibration(index)
    assert fitted is not None
    assert fitted.calibration == written
    assert np.array_equal(fitted.decider.calibrated, np.linspace(0.4, 0.7, 60))
    write_fitted(index, index_digest="another")
    with pytest.raises(IndexFolderError, match="another state of this index"):
        read_calibration(index)


def test_a_calibration_that_is_kept_is_refused_once_the_index_is_another(index: Path) -> None:
    write_fitted(index)
    assert read_calibration(index) is not None
    manifest = read_manifest(index)
    replace_file(index / MANIFEST, replace(manifest, skipped={"truncated": 7}).to_json())
    with pytest.raises(IndexFolderError, match="another state of this index"):
        read_calibration(index)
    replace_file(index / MANIFEST, manifest.to_json())
    assert read_calibration(index) is not None
    (index / MANIFEST).unlink()
    with pytest.raises(IndexFolderError, match=r"has no manifest\.json"):
        read_calibration(index)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"schema_version": 2}', '{"schema_version": 4, "gates": {"known": NaN}}']
)
def test_damaged_calibration_is_refused_by_name(index: Path, text: str) -> None:
    (index / CALIBRATION).write_text(text)
    with pytest.raises(IndexFolderError, match=r"calibration\.json"):
        read_calibration(index)


def test_damaged_arrays_of_a_calibration_are_refused_by_name(index: Path) -> None:
    write_fitted(index)
    [arrays] = index.glob("calibration-*.npz")
    content = bytearray(arrays.read_bytes())
    content[len(content) // 2] ^= 1
    arrays.write_bytes(content)
    (index / CALIBRATION).touch()
    with pytest.raises(IndexFolderError, match=r"calibration-.*\.npz"):
        read_calibration(index)
    arrays.unlink()
    with pytest.raises(IndexFolderError, match=r"calibration-.*\.npz"):
        read_calibration(index)


def test_a_new_calibration_takes_the_place_of_the_old(index: Path) -> None:
    write_fitted(index)
    second = write_fitted(index, head=HeadSettings({"gda": 1.0}, 5, 0.1))
    fitted = read_calibration(index)
    assert fitted is not None
    assert fitted.calibration == second
    assert len(list(index.glob("calibration-*.npz"))) == 1
    assert problems_of(index) == []


def test_mismatch_is_an_index_error_too() -> None:
    assert issubclass(EncoderMismatchError, IndexFolderError)
