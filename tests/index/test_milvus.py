"""Searching in Milvus Lite: the same answers as exact search here, and no state but the pushed one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmm_classifier.api.build_index import build_index
from lmm_classifier.config.pipeline import PipelineConfig
from lmm_classifier.errors import ConfigError, IndexFolderError
from lmm_classifier.index.milvus import Milvus, connected, push_index
from lmm_classifier.index.npz import write_npz
from lmm_classifier.index.records import Record, Records
from lmm_classifier.index.search import VectorIndex, open_index
from lmm_classifier.index.update import import_npz, remove_from_index
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.types import EncoderContract
from synthetic import COLOURS, picture, write_corpus

REASON = "pymilvus is not installed: pip install 'lmm-classifier[milvus]'"
pytest.importorskip("pymilvus", reason=REASON)
pytest.importorskip("milvus_lite", reason=REASON)
CONTRACT = EncoderContract("fake", "", "", "", "none", 32, "float32")
LABELS = ("b\"\\ and '", "🌻\n", os.fsdecode(b"a\xff"), "plain")


@pytest.fixture
def uri(tmp_path: Path) -> Iterator[str]:
    """A Milvus of the test's own, stopped at its end."""
    path = str(tmp_path / "milvus.db")
    yield path
    release(path)


def release(path: str) -> None:
    from milvus_lite.server_manager import server_manager_instance

    from lmm_classifier.index import milvus

    if client := milvus._clients.pop(path, None):
        client.close()
        server_manager_instance.release_server(path)


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """An index of 600 vectors, 100 of them twice, under hostile labels and paths."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((600, 32)).astype(np.float32)
    x[400:500] = x[:100]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    records = [Record(f"{LABELS[i % 4]}/{i}", LABELS[i % 4], f"{i:064x}") for i in range(600)]
    write_npz(tmp_path / "x.npz", CONTRACT, x, Records.of(records))
    import_npz(tmp_path / "x.npz", tmp_path / "my index")
    return tmp_path / "my index"


def queries(count: int = 200) -> np.ndarray:
    found = np.random.default_rng(1).standard_normal((count, 32)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def agree(one: VectorIndex, other: VectorIndex, k: int, labels: tuple[str, ...] | None = None) -> None:
    """Same similarities within 1e-6, and the same rows wherever they differ by more than that."""
    a, b = one.search(queries(), k, labels), other.search(queries(), k, labels)
    np.testing.assert_allclose(a.similarity, b.similarity, atol=1e-6)
    np.testing.assert_array_equal(a.rows < 0, b.rows < 0)
    for query, (rows, others) in zip(queries(), zip(a.rows, b.rows, strict=True), strict=True):
        for row, different in zip(rows[rows != others], others[rows != others], strict=True):
            pair = one.vectors.take(np.asarray([row, different])) @ query
            assert abs(pair[0] - pair[1]) < 1e-6
    assert a.rows.shape == b.rows.shape == (200, min(k, len(one)))


def test_the_same_answers_as_exact_search(index: Path, uri: str) -> None:
    name, count = push_index(index, Milvus(uri))
    assert (name, count) == ("lmm_my_index", 600)
    exact, there = open_index(index), open_index(index, backend=Milvus(uri))
    assert open_index(index, backend=Milvus(uri)) is there
    for k in (1, 10, 20, 600, 5000):
        agree(exact, there, k)
    for labels in ((LABELS[0],), LABELS[1:3], LABELS):
        agree(exact, there, 10, labels)
    agree(exact, there, 300, (LABELS[2],))  # more than there are: padded
    with pytest.raises(ConfigError, match="no image with one of the labels"):
        there.search(queries(), 5, ("mauve",))
    assert there.search(np.empty((0, 32), np.float32), 5).rows.shape == (0, 5)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda q: there.search(q[None], 5).rows[0], queries(40)))
    np.testing.assert_array_equal(np.asarray(found), there.search(queries(40), 5).rows)


def test_milvus_holds_names_that_can_be_read_back(index: Path, uri: str) -> None:
    push_index(index, Milvus(uri, "photos"))
    rows = connected(uri).query("photos", filter="row in [0, 1, 2, 3]", output_fields=["label", "path"])
    expected = [(LABELS[i], f"{LABELS[i]}/{i}") for i in range(4)]
    found = sorted(rows, key=lambda row: row["row"])
    assert [(json.loads(row["label"]), json.loads(row["path"])) for row in found] == expected


def test_a_push_takes_the_place_of_the_former_and_of_nothing_else(index: Path, uri: str) -> None:
    where = Milvus(uri, "photos")
    push_index(index, where)
    there = open_index(index, backend=where)
    remove_from_index(index, labels=["plain"])
    with pytest.raises(IndexFolderError, match=r"another state than .*push again"):
        open_index(index, backend=where)
    assert push_index(index, where) == ("photos", 450)
    assert push_index(index, where) == ("photos", 450)  # is there already
    agree(open_index(index), open_index(index, backend=where), 10)
    with pytest.raises(IndexFolderError, match="is the index pushed"):
        there.search(queries(), 5)  # of the state that is gone
    assert len(connected(uri).list_collections()) == 1
    with pytest.raises(IndexFolderError, match="has no index other; push again"):
        open_index(index, backend=Milvus(uri, "other"))


def test_an_interrupted_push_leaves_the_former_in_force(
    index: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = Milvus(uri, "photos")
    push_index(index, where)
    remove_from_index(index, labels=["plain"])

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        push_index(index, where, on_progress=dies)
    assert connected(uri).query("photos", filter="", output_fields=["count(*)"])[0]["count(*)"] == 600
    push_index(index, where)
    assert len(connected(uri).list_collections()) == 1
    agree(open_index(index), open_index(index, backend=where), 10)


def test_what_belongs_to_another_program_is_never_touched(index: Path, uri: str) -> None:
    client: Any = connected(uri)
    client.create_collection("photos", dimension=4)
    client.create_collection("theirs", dimension=4)
    client.create_alias("theirs", "pictures")
    for name in ("photos", "pictures"):
        with pytest.raises(IndexFolderError, match="is not an index of this program"):
            push_index(index, Milvus(uri, name))
        with pytest.raises(IndexFolderError, match="push again"):
            open_index(index, backend=Milvus(uri, name))
    assert sorted(client.list_collections()) == ["photos", "theirs"]
    assert client.describe_alias("pictures")["collection_name"] == "theirs"


def test_what_cannot_be_pushed_is_said(index: Path, uri: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no name for a collection"):
        push_index(index, Milvus(uri, "1 & 2"))
    with pytest.raises(IndexFolderError, match="single file"):
        push_index(tmp_path / "x.npz", Milvus(uri))
    with pytest.raises(ConfigError, match="searched in this process only"):
        open_index(tmp_path / "x.npz", backend=Milvus(uri))
    corpus = write_corpus(tmp_path / "corpus")
    build_index(corpus, tmp_path / "both", encoder=[ModelSpec("fake"), ModelSpec("descriptor")])
    with pytest.raises(ConfigError, match="fake, descriptor; choose one"):
        push_index(tmp_path / "both", Milvus(uri))
    push_index(tmp_path / "both", Milvus(uri), "descriptor")
    with pytest.raises(IndexFolderError, match="no vectors of fake; push again"):
        open_index(tmp_path / "both", backend=Milvus(uri))
    second = open_index(tmp_path / "both").encoder
    assert second.name == "fake"


def test_settings_name_the_backend_and_paths_start_at_the_file(tmp_path: Path) -> None:
    text = "encoder: {family: fake}\nrerank: {enabled: false}\nretrieval: {index_path: index"
    for more, said in (
        (", backend: milvus}", "backend milvus needs milvus_uri"),
        (", milvus_uri: x.db}", "need backend: milvus"),
        (", backend: milvsu, milvus_uri: x.db}", "milvus"),
    ):
        (tmp_path / "s.yaml").write_text(text + more)
        with pytest.raises(ConfigError, match=said):
            PipelineConfig.from_yaml(tmp_path / "s.yaml")
    for uri, expected in (("x.db", str(tmp_path / "x.db")), ("http://h:1", "http://h:1")):
        (tmp_path / "s.yaml").write_text(f'{text}, backend: milvus, milvus_uri: "{uri}"}}')
        config = PipelineConfig.from_yaml(tmp_path / "s.yaml")
        assert config.retrieval is not None
        assert config.retrieval.milvus_uri == expected
        (tmp_path / "again.yaml").write_text(config.to_yaml())
        assert PipelineConfig.from_yaml(tmp_path / "again.yaml") == config
        long = f'pipeline:\n- retrieve: {{index: index, backend: milvus, milvus_uri: "{uri}"}}\n'
        (tmp_path / "long.yaml").write_text(long)
        assert PipelineConfig.from_yaml(tmp_path / "long.yaml").steps()[0].milvus_uri == expected


def cli(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lmm_classifier", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=120)


def test_the_commands_give_the_answers_of_faiss(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", per_label=8)
    (tmp_path / "photos").mkdir()
    for i, (label, colour) in enumerate(COLOURS.items()):
        picture(colour, seed=500 + i).save(tmp_path / f"photos/{label}.png")
    settings = "labels: [red, blue]\nencoder: {family: fake}\nrerank: {enabled: false}\n"
    for name, more in (("faiss", ""), ("milvus", ", backend: milvus, milvus_uri: ./m.db")):
        (tmp_path / f"{name}.yaml").write_text(f"{settings}retrieval: {{index_path: index{more}}}\n")
    assert cli("index", "build", "corpus", "-o", "index", "--encoder", "fake", cwd=tmp_path).returncode == 0
    early = cli("classify", "photos", "-c", "milvus.yaml", cwd=tmp_path)
    assert (early.returncode, early.stdout, early.stderr.count("\n")) == (1, "", 1), early.stderr
    assert "has no index lmm_index; push again: `index push" in early.stderr
    pushed = cli("index", "push", "index", "--milvus", "m.db", cwd=tmp_path)
    assert (pushed.returncode, pushed.stderr) == (0, "")
    assert pushed.stdout.startswith("m.db: 24 vectors of index as lmm_index, ")
    answers = {}
    for name in ("faiss", "milvus"):
        result = cli("classify", "photos", "-c", f"{name}.yaml", cwd=tmp_path)
        assert (result.returncode, result.stderr) == (0, "")
        answers[name] = [json.loads(line) for line in result.stdout.splitlines()]
    for one, other in zip(answers["faiss"], answers["milvus"], strict=True):
        one.pop("timings"), other.pop("timings")
        assert flat(one) == pytest.approx(flat(other), abs=1e-5)
    shutil.rmtree(tmp_path / "corpus/red")
    assert cli("index", "build", "corpus", "-o", "index", "--encoder", "fake", cwd=tmp_path).returncode == 0
    stale = cli("classify", "photos", "-c", "milvus.yaml", cwd=tmp_path)
    assert (stale.returncode, stale.stderr.count("\n")) == (1, 1)
    assert "another state" in stale.stderr


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """A JSON value as its leaves."""
    if isinstance(value, dict):
        return {key: leaf for k, v in value.items() for key, leaf in flat(v, f"{name}.{k}").items()}
    if isinstance(value, list):
        return {key: leaf for i, v in enumerate(value) for key, leaf in flat(v, f"{name}.{i}").items()}
    return {name: value}


@pytest.mark.parametrize("uri", ["http://user:secret@127.0.0.1:1", "/no/such/folder/m.db", "nonsense"])
def test_a_milvus_that_is_not_there_is_one_line(tmp_path: Path, uri: str) -> None:
    build_index(write_corpus(tmp_path / "corpus"), tmp_path / "index", encoder=ModelSpec("fake"))
    failed = cli("index", "push", "index", "--milvus", uri, cwd=tmp_path)
    assert (failed.returncode, failed.stdout, failed.stderr.count("\n")) == (1, "", 1), failed.stderr
    assert failed.stderr.startswith("error: Milvus at ")
    assert "secret" not in failed.stderr
