"""Approximate search, measured against exact search by FAISS itself and by numpy."""

from __future__ import annotations

import shutil
from pathlib import Path

import faiss
import numpy as np
import pytest

from lmm_classifier.errors import ConfigError, IndexFolderError
from lmm_classifier.index.build import BuildOptions
from lmm_classifier.index.engine import ApproximateSearch, ExactSearch, factory_for, tuned
from lmm_classifier.index.npz import write_npz
from lmm_classifier.index.publish import SearchOptions
from lmm_classifier.index.records import Record, Records
from lmm_classifier.index.search import VectorIndex, open_index
from lmm_classifier.index.update import import_npz
from lmm_classifier.index.vectors import Vectors
from lmm_classifier.types import EncoderContract

DIM, N = 32, 6000
CONTRACT = EncoderContract("test", "", "", "", "", DIM, "float32")


def clustered(n: int, seed: int) -> np.ndarray:
    centres = np.random.default_rng(0).standard_normal((60, DIM))
    rng = np.random.default_rng(seed)
    made = centres[rng.integers(60, size=n)] + rng.standard_normal((n, DIM))
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    made = clustered(N, 1)
    return Vectors([made[:2500], made[2500:2500], made[2500:5000], made[5000:]], DIM)


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return (np.arange(N) % 7).astype(np.int32)


@pytest.mark.parametrize(
    ("n", "dim", "expected"),
    [
        (20_000, 1152, "Flat"),
        (300_000, 768, "Flat"),
        (300_001, 768, "IVF2048,SQ8"),
        (1_000_000, 256, "IVF4096,SQ8"),
        (10_000_000, 1152, "IVF16384_HNSW32,SQ8"),
        (100_000_000, 1152, "IVF32768_HNSW32,PQ128"),
        (100_000_000, 7, "IVF32768_HNSW32,SQ8"),
    ],
)
def test_the_type_goes_by_size(n: int, dim: int, expected: str) -> None:
    assert factory_for(n, dim) == expected
    assert faiss.index_factory(dim, expected, faiss.METRIC_INNER_PRODUCT).d == dim


@pytest.mark.parametrize("factory", ["IVF64,SQ8", "HNSW16", "IVF64,SQ4", "IVF32_HNSW16,SQfp16"])
def test_what_was_measured_holds_on_queries_that_were_never_in_the_index(
    vectors: Vectors, labels: np.ndarray, factory: str
) -> None:
    engine, point = tuned(vectors, labels, factory)
    assert engine.ntotal == N
    assert (point.k, point.queries) == (20, 600)
    assert 0.99 <= point.recall <= 1
    assert 0.9 < point.label_agreement <= 1
    fresh = clustered(500, 2)
    everything = np.concatenate(vectors.parts)
    exact = np.argsort(-(fresh @ everything.T), axis=1)[:, :20]
    found = ApproximateSearch(engine, vectors, point.refine).search(fresh, 20)
    recall = np.mean([np.isin(a, b).mean() for a, b in zip(exact, found.rows, strict=True)])
    assert recall >= 0.985
    # Similarities are exact however coarse the structure is, and in order.
    np.testing.assert_allclose(
        found.similarity, np.einsum("nd,nkd->nk", fresh, everything[found.rows]), atol=1e-5
    )
    assert (np.diff(found.similarity, axis=1) <= 0).all()
    # Every stored vector finds itself, also those that were held out while tuning.
    own = ApproximateSearch(engine, vectors, point.refine).search(everything, 1)
    assert (own.rows[:, 0] == np.arange(N)).mean() > 0.99


def test_the_same_vectors_make_the_same_structure(vectors: Vectors, labels: np.ndarray) -> None:
    made = [tuned(vectors, labels, "IVF64,SQ8") for _ in range(2)]
    assert made[0][1] == made[1][1]
    contents = [faiss.serialize_index(engine).tobytes() for engine, _ in made]
    assert contents[0] == contents[1]


def test_a_target_out_of_reach_is_told(vectors: Vectors, labels: np.ndarray) -> None:
    _, point = tuned(vectors, labels, "PQ2x4", target_recall=1.0)
    assert point.recall < 1
    assert point.refine == 64


@pytest.mark.parametrize("factory", ["IVF64,Nonsense", "PQ5", ""])
def test_what_faiss_cannot_make_is_one_line(vectors: Vectors, labels: np.ndarray, factory: str) -> None:
    with pytest.raises(ConfigError, match=f"FAISS cannot make {factory!r} of 6000 vectors") as error:
        tuned(vectors, labels, factory)
    assert "\n" not in str(error.value)


def test_too_few_vectors_to_hold_any_out() -> None:
    with pytest.raises(ConfigError, match="at least 20"):
        tuned(Vectors([clustered(19, 1)], DIM), np.zeros(19, np.int32), "HNSW16")


def test_rows_that_were_not_found_are_padding() -> None:
    made = clustered(40, 1)
    engine = faiss.index_factory(DIM, "IVF8,Flat", faiss.METRIC_INNER_PRODUCT)
    engine.train(made)
    engine.add(made)  # one list of eight is looked at: fewer than 30 are found
    found = ApproximateSearch(engine, Vectors([made], DIM), 4).search(made[:3], 30)
    assert (found.rows[:, -1] == -1).all()
    assert (found.similarity[found.rows < 0] == 0).all()
    assert (found.rows[:, 0] == [0, 1, 2]).all()


def test_no_queries_give_no_rows() -> None:
    made = clustered(40, 1)
    engine = faiss.index_factory(DIM, "HNSW8", faiss.METRIC_INNER_PRODUCT)
    engine.add(made)
    for search in (ApproximateSearch(engine, Vectors([made], DIM), 4), ExactSearch(Vectors([made], DIM))):
        assert search.search(made[:0], 5).rows.shape == (0, 5)


@pytest.fixture(scope="module")
def folder(vectors: Vectors, labels: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index folder that is searched through IVF."""
    work = tmp_path_factory.mktemp("approximate")
    records = Records.of(
        Record(f"{code}/{i}.jpg", "abcdefg"[code], f"{i:064}") for i, code in enumerate(labels)
    )
    write_npz(work / "x.npz", CONTRACT, np.concatenate(vectors.parts), records)
    report = import_npz(
        work / "x.npz", work / "index", BuildOptions(search=SearchOptions(factory="IVF64,SQ8"))
    )
    assert report.warnings == ()
    return work


def test_an_approximate_index_on_disk(folder: Path, vectors: Vectors) -> None:
    index = open_index(folder / "index")
    point = index.operating_point
    assert point.factory == "IVF64,SQ8"
    assert point.parameters.startswith("nprobe=")
    assert point.bytes_per_vector == pytest.approx((folder / "index/index.faiss").stat().st_size / N)
    exact = VectorIndex(CONTRACT, index.records, vectors, "exact")
    fresh = clustered(200, 3)
    one, other = index.search(fresh, 10), exact.search(fresh, 10)
    assert (one.rows == other.rows).mean() > 0.98
    # With a filter, whatever the structure, the search is exact.
    one, other = index.search(fresh, 10, ("a", "c")), exact.search(fresh, 10, ("a", "c"))
    np.testing.assert_array_equal(one.rows, other.rows)
    assert set(index.records.codes[one.rows.ravel()].tolist()) == {0, 2}


@pytest.mark.parametrize("copies", [90, pytest.param(450, marks=pytest.mark.slow)])
def test_a_damaged_structure_is_refused_by_name(folder: Path, tmp_path: Path, copies: int) -> None:
    path = Path(shutil.copytree(folder / "index", tmp_path / "index"))
    content = (path / "index.faiss").read_bytes()
    rng = np.random.default_rng(7)
    for i in range(copies):
        at = int(rng.integers(len(content)))
        copy = bytearray(content)
        if i % 2:
            copy[at] ^= 1 << int(rng.integers(8))
        else:
            del copy[at:]
        (path / "index.faiss").write_bytes(copy)
        with pytest.raises(IndexFolderError, match=r"index\.faiss"):
            open_index(path)
    (path / "index.faiss").unlink()
    with pytest.raises(IndexFolderError, match=r"index\.faiss"):
        open_index(path)
    (path / "index.faiss").write_bytes(content)
    assert len(open_index(path)) == N
