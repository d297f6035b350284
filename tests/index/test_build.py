from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lmm_classifier.api.build_index import build_index, build_index_from_directory
from lmm_classifier.corpus.source import read_corpus
from lmm_classifier.errors import CorpusError, IndexFolderError, ModelError
from lmm_classifier.index.build import BuildOptions, write_index
from lmm_classifier.index.search import open_index
from lmm_classifier.models.loading import load_encoder
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.storage.progress import Progress
from synthetic import COLOURS, Disturbed, write_corpus

FAKE = ModelSpec("fake")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_folder_holds_what_its_manifest_says(corpus: Path, tmp_path: Path) -> None:
    build_index(corpus, tmp_path / "index", encoder=FAKE)
    manifest = json.loads((tmp_path / "index/manifest.json").read_text())
    assert manifest["count"] == 18
    assert manifest["labels"] == {"blue": 6, "green": 6, "red": 6}
    on_disk = tree(tmp_path / "index")
    assert manifest["files"].keys() == on_disk.keys() - {"manifest.json", "file-stats.npy"}
    for name, record in manifest["files"].items():
        assert record["sha256"] == hashlib.sha256(on_disk[name]).hexdigest()
        assert record["size"] == len(on_disk[name])
    # Read with the libraries themselves: vectors and records agree row by row.
    vectors = np.load(tmp_path / "index/shards/000000.npy", allow_pickle=False)
    table = pq.read_table(tmp_path / "index/shards/000000.parquet")
    for row, path in enumerate(table["path"].to_pylist()):
        content = (corpus / os.fsdecode(path)).read_bytes()
        assert table["sha256"][row].as_py() == hashlib.sha256(content).hexdigest()
        with Image.open(corpus / os.fsdecode(path)) as image:
            np.testing.assert_allclose(load_encoder(FAKE).encode([image])[0], vectors[row], atol=1e-6)


def test_same_corpus_gives_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    build_index(corpus, tmp_path / "a", encoder=FAKE, batch_size=4, workers=1)
    elsewhere = tmp_path / "elsewhere"
    for path in sorted(corpus.rglob("*.png"), reverse=True):  # another order in the folders
        copy = elsewhere / path.relative_to(corpus)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    build_index(elsewhere, tmp_path / "b", encoder=FAKE, batch_size=5, workers=4)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_shards_are_cut_at_their_size(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmm_classifier.index.build.SHARD_ROWS", 7)
    build_index(corpus, tmp_path / "index", encoder=FAKE, batch_size=4)
    rows = [len(np.load(path)) for path in sorted((tmp_path / "index/shards").glob("*.npy"))]
    assert rows == [7, 7, 4]
    index = open_index(tmp_path / "index")
    assert [record.path for record in index.records] == [
        f"{c}/{i}.png" for c in sorted(COLOURS) for i in range(6)
    ]


def test_every_file_is_indexed_or_skipped_with_a_code(corpus: Path, tmp_path: Path) -> None:
    (corpus / "red/broken.jpg").write_bytes(b"\xff\xd8\xffnot a photo")
    (corpus / "red/notes.txt").write_text("no photo")
    (corpus / "red/empty.png").touch()
    (corpus / "lonely").mkdir()
    report = build_index(corpus, tmp_path / "index", encoder=FAKE, max_bad_ratio=0.1)
    assert report.indexed == 18
    assert {(s.path, s.code) for s in report.skipped} == {
        ("red/broken.jpg", "corrupt"),
        ("red/notes.txt", "unsupported_format"),
        ("red/empty.png", "empty_file"),
    }
    assert any("lonely" in line for line in report.warnings)
    lines = [json.loads(line) for line in (tmp_path / "index/failures.jsonl").read_text().splitlines()]
    assert {(line["path"], line["code"]) for line in lines} == {(s.path, s.code) for s in report.skipped}


def test_the_documented_builder_logs_what_it_skips(
    corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (corpus / "red/broken.jpg").write_bytes(b"no photo")
    assert len(build_index_from_directory(corpus, 4, tmp_path / "index", encoder=FAKE)) == 18
    assert "skipped red/broken.jpg" in caplog.text


def test_progress_counts_every_file(corpus: Path, tmp_path: Path) -> None:
    (corpus / "red/broken.jpg").write_bytes(b"\xff\xd8\xff")
    seen: list[Progress] = []
    build_index(corpus, tmp_path / "index", encoder=FAKE, max_bad_ratio=0.1, on_progress=seen.append)
    assert seen[-1] == Progress("indexing", 19, 19, 1)
    assert [p.seen for p in seen] == list(range(1, 20))


def test_names_that_are_not_utf8_survive(corpus: Path, tmp_path: Path) -> None:
    label = os.fsdecode(b"caf\xe9")
    (corpus / label).mkdir()
    name = os.fsdecode(b"\xff\xfe.png")
    (corpus / "red/0.png").rename(corpus / label / name)
    build_index(corpus, tmp_path / "index", encoder=FAKE)
    build_index_from_directory(corpus, output_path=tmp_path / "index.npz", encoder=FAKE)
    for path in (tmp_path / "index", tmp_path / "index.npz"):
        assert (f"{label}/{name}", label) in {(r.path, r.label) for r in open_index(path).records}


def test_npz_has_the_documented_arrays_without_pickle(corpus: Path, tmp_path: Path) -> None:
    index = build_index_from_directory(corpus, 4, tmp_path / "index.npz", encoder=FAKE)
    with np.load(tmp_path / "index.npz", allow_pickle=False) as arrays:
        assert arrays["embeddings"].shape == (18, 48)
        assert arrays["embeddings"].dtype == np.float32
        assert arrays["labels"].tolist() == ["blue"] * 6 + ["green"] * 6 + ["red"] * 6
        assert json.loads(arrays["metadata"][0])["path"] == "blue/0.png"
        assert str(arrays["metric"]) == "cosine"
    build_index(corpus, tmp_path / "folder", encoder=FAKE)
    assert list(index.records) == list(open_index(tmp_path / "folder").records)


@pytest.mark.parametrize("name", ["index", "index.npz"])
def test_a_failing_build_leaves_the_old_index_and_nothing_else(
    corpus: Path, tmp_path: Path, name: str
) -> None:
    output = tmp_path / "out" / name
    build_index(corpus, output, encoder=FAKE)
    before = tree(tmp_path / "out")
    shutil.rmtree(corpus)
    write_corpus(corpus, per_label=7, seed=10_000)
    contract = load_encoder(FAKE).contract
    calls = iter(range(3))

    def dies_in_the_third_batch(images: object) -> np.ndarray:
        if next(calls) == 2:
            raise ModelError("out of memory")
        return np.eye(4, 48, dtype=np.float32)

    with pytest.raises(ModelError, match="out of memory"):
        write_index(
            read_corpus(corpus),
            [Disturbed(contract, dies_in_the_third_batch)],
            output,
            BuildOptions(batch_size=4),
        )
    assert tree(tmp_path / "out") == before
    assert [p.name for p in (tmp_path / "out").iterdir()] == [name]


def test_an_encoder_that_breaks_its_contract_is_refused(corpus: Path, tmp_path: Path) -> None:
    contract = load_encoder(FAKE).contract
    for wrong in (np.ones((4, 48)), np.ones((4, 47)), np.full((4, 48), np.nan)):
        with pytest.raises(ModelError, match=r"unit rows \(4, 48\)"):
            write_index(
                read_corpus(corpus),
                [Disturbed(contract, lambda _, w=wrong: w)],
                tmp_path / "i",
                BuildOptions(batch_size=4),
            )
    assert not (tmp_path / "i").exists()


def test_a_folder_that_is_no_index_is_never_replaced(corpus: Path, tmp_path: Path) -> None:
    precious = tmp_path / "photos"
    precious.mkdir()
    (precious / "only-copy.jpg").write_bytes(b"x")
    with pytest.raises(IndexFolderError, match="exists and is not an index"):
        build_index(corpus, precious, encoder=FAKE)
    assert (precious / "only-copy.jpg").read_bytes() == b"x"
    (tmp_path / "x.npz").mkdir()
    with pytest.raises(IndexFolderError, match="is a folder"):
        build_index(corpus, tmp_path / "x.npz", encoder=FAKE)


def test_nothing_readable_is_an_error_that_counts_the_reasons(tmp_path: Path) -> None:
    (tmp_path / "corpus/a").mkdir(parents=True)
    (tmp_path / "corpus/a/x.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(CorpusError, match="no image .* could be read .*1 (corrupt|truncated)"):
        build_index(tmp_path / "corpus", tmp_path / "index", encoder=FAKE)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_disk_errors_name_the_output(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(IndexFolderError, match=r"cannot write .*file/index"):
        build_index(corpus, tmp_path / "file/index", encoder=FAKE)


def test_an_opened_index_is_replaced_after_a_rebuild(corpus: Path, tmp_path: Path) -> None:
    build_index(corpus, tmp_path / "index", encoder=FAKE)
    assert len(open_index(tmp_path / "index")) == 18
    (corpus / "red/0.png").unlink()
    build_index(corpus, tmp_path / "index", encoder=FAKE)
    assert len(open_index(tmp_path / "index")) == 17
