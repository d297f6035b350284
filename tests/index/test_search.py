from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from lmm_classifier.errors import ConfigError, EncoderMismatchError
from lmm_classifier.index.records import Record, Records
from lmm_classifier.index.search import VectorIndex
from lmm_classifier.index.vectors import Vectors
from lmm_classifier.types import EncoderContract

DIM = 32
CONTRACT = EncoderContract("test", "", "", "", "", DIM, "float32")


def unit(n: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return unit(200, 0)


@pytest.fixture(scope="module")
def index(vectors: np.ndarray) -> VectorIndex:
    records = [Record(f"{'abcd'[i % 4]}/{i}.jpg", "abcd"[i % 4], "0" * 64) for i in range(200)]
    return VectorIndex(CONTRACT, Records.of(records), Vectors([vectors], DIM), "test index")


def test_agrees_with_scikit_learn(index: VectorIndex, vectors: np.ndarray) -> None:
    queries = unit(50, 1)
    distance, rows = NearestNeighbors(n_neighbors=7, metric="cosine").fit(vectors).kneighbors(queries)
    found = index.search(queries, 7)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_allclose(found.similarity, 1 - distance, atol=1e-5)


def test_k_is_clipped_to_the_index(index: VectorIndex) -> None:
    assert index.search(unit(2, 1), 10_000).rows.shape == (2, 200)


def test_labels_limit_the_search_and_short_rows_are_padded(index: VectorIndex, vectors: np.ndarray) -> None:
    queries = unit(5, 2)
    only = np.flatnonzero(np.arange(200) % 4 == 1)
    found = index.search(queries, 60, ("b", "not there"))
    expected = only[np.argsort(-(queries @ vectors[only].T), axis=1)]
    np.testing.assert_array_equal(found.rows[:, :50], expected)
    assert (found.rows[:, 50:] == -1).all()
    assert (found.similarity[:, 50:] == 0).all()
    near = index.describe(found.similarity, found.rows)
    assert [len(row) for row in near.labels] == [50] * 5
    assert set(near.labels[0]) == {"b"}
    assert near.paths[0][0] == f"b/{expected[0, 0]}.jpg"


def test_wrong_queries_are_refused(index: VectorIndex) -> None:
    with pytest.raises(EncoderMismatchError, match=r"\(n, 32\)"):
        index.search(np.ones((1, 31), np.float32), 3)
    with pytest.raises(EncoderMismatchError, match="finite"):
        index.search(np.full((1, DIM), np.nan, np.float32), 3)
    with pytest.raises(ConfigError, match="has no image with one of the labels x, y"):
        index.search(unit(1, 3), 3, ("x", "y"))


def test_another_encoders_vectors_are_refused_by_name(index: VectorIndex) -> None:
    right = {CONTRACT.fingerprint: unit(1, 4)}
    assert index.vectors_of(right) is right[CONTRACT.fingerprint]
    with pytest.raises(EncoderMismatchError, match="was built by encoder test .*, the query by feedbeef"):
        index.vectors_of({"feedbeef": unit(1, 4)})


def test_counts_that_disagree_are_refused(vectors: np.ndarray, tmp_path: Path) -> None:
    from lmm_classifier.errors import IndexFolderError

    with pytest.raises(IndexFolderError, match="200 vectors of dimension 32 for 1 records"):
        VectorIndex(CONTRACT, Records.of([Record("a", "a", "")]), Vectors([vectors], DIM), "test index")
