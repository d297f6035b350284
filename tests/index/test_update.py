"""Adding to an index, removing from it, and carrying it from and to a single file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lmm_classifier.api.build_index import add_photos, build_index
from lmm_classifier.corpus.source import read_corpus
from lmm_classifier.errors import ConfigError, CorpusError, EncoderMismatchError, IndexFolderError
from lmm_classifier.index.publish import SearchOptions
from lmm_classifier.index.search import encoders_of, open_index
from lmm_classifier.index.update import add_to_index, export_npz, import_npz, remove_from_index
from lmm_classifier.index.verify import problems_of
from lmm_classifier.models.loading import load_encoder
from lmm_classifier.models.spec import ModelSpec
from synthetic import COLOURS, picture, write_corpus

FAKE, DESCRIPTOR = ModelSpec("fake"), ModelSpec("descriptor")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmm_classifier.index.build.SHARD_ROWS", 5)


@pytest.fixture
def index(tmp_path: Path) -> Path:
    build_index(write_corpus(tmp_path / "corpus"), tmp_path / "index", encoder=FAKE)
    return tmp_path / "index"


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_added_photos_join_and_nothing_else_is_read(index: Path, tmp_path: Path) -> None:
    more = tmp_path / "more"
    (more / "yellow").mkdir(parents=True)
    (more / "red").mkdir()
    picture((240, 230, 30), seed=5).save(more / "yellow/a.png")
    picture(COLOURS["red"], seed=900).save(more / "red/0.png")  # takes the place of the one that is there
    (more / "red/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    shutil.rmtree(tmp_path / "corpus")  # the photos that are in the index need not be there any more
    report = add_photos(more, index, max_bad_ratio=0.5)
    assert (report.indexed, report.encoded, report.removed) == (19, 2, 0)
    assert [s.path for s in report.skipped] == ["red/broken.png"]
    opened = open_index(index)
    assert opened.labels == ("blue", "green", "red", "yellow")
    assert opened.records.paths().count("red/0.png") == 1
    for row, record in enumerate(opened.records):
        if record.path in ("yellow/a.png", "red/0.png"):
            expected = load_encoder(FAKE).encode([_open(more / record.path)])
            np.testing.assert_allclose(opened.vectors.take(np.asarray([row])), expected, atol=1e-6)
    assert problems_of(index) == []


def test_what_was_not_readable_stays_on_record_until_it_is(index: Path, tmp_path: Path) -> None:
    more = write_corpus(tmp_path / "more", seed=4000)
    (more / "red/x.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    add_photos(more, index, max_bad_ratio=1)
    remove_from_index(index, labels=["blue"])
    assert _failures(index) == ["red/x.png"]
    picture(COLOURS["red"], seed=77).save(more / "red/x.png")
    add_photos(more, index)
    assert _failures(index) == []


def test_an_addition_is_the_same_as_a_build_with_both(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    later = tmp_path / "later/red"
    later.mkdir(parents=True)
    picture(COLOURS["red"], seed=901).save(later / "z.png")
    build_index(corpus, tmp_path / "index", encoder=FAKE)
    add_photos(tmp_path / "later", tmp_path / "index")
    shutil.copy2(later / "z.png", corpus / "red/z.png")
    build_index(corpus, tmp_path / "both", encoder=FAKE)
    assert tree(tmp_path / "index") == tree(tmp_path / "both")


def test_removal_by_path_and_label(index: Path, tmp_path: Path) -> None:
    before = open_index(index)
    shutil.rmtree(tmp_path / "corpus")
    report = remove_from_index(index, paths=["red/0.png"], labels=["blue"])
    assert (report.indexed, report.encoded, report.removed) == (11, 0, 7)
    after = open_index(index)
    rows = [row for row, r in enumerate(before.records) if r.label != "blue" and r.path != "red/0.png"]
    np.testing.assert_array_equal(after.vectors.take(np.arange(11)), before.vectors.take(np.asarray(rows)))
    assert list(after.records) == [before.records[row] for row in rows]
    assert problems_of(index) == []


def test_removals_that_make_no_sense_change_nothing(index: Path) -> None:
    before = tree(index)
    for options in ({"paths": ["no/such.png"]}, {"labels": ["mauve"]}, {"labels": list(COLOURS)}):
        with pytest.raises(ConfigError):
            remove_from_index(index, **options)
    assert tree(index) == before
    assert not list(index.parent.glob(".index*"))


def test_an_addition_needs_an_index_and_its_encoder(index: Path, tmp_path: Path) -> None:
    corpus = read_corpus(tmp_path / "corpus")
    with pytest.raises(IndexFolderError, match="not an index"):
        add_to_index(tmp_path / "nowhere", corpus, [load_encoder(FAKE)])
    assert not list(tmp_path.glob(".nowhere*"))
    with pytest.raises(EncoderMismatchError):
        add_to_index(index, corpus, [load_encoder(DESCRIPTOR)])
    with pytest.raises(IndexFolderError, match="single file"):
        add_to_index(tmp_path / "x.npz", corpus, [load_encoder(FAKE)])


def test_to_a_single_file_and_back(index: Path, tmp_path: Path) -> None:
    assert export_npz(index, tmp_path / "x.npz") == 18
    with np.load(tmp_path / "x.npz", allow_pickle=False) as arrays:
        assert arrays["embeddings"].shape == (18, 48)
        assert arrays["labels"].tolist() == [label for label in sorted(COLOURS) for _ in range(6)]
    assert import_npz(tmp_path / "x.npz", tmp_path / "again").indexed == 18
    one, other = open_index(index), open_index(tmp_path / "again")
    assert list(one.records) == list(other.records)
    np.testing.assert_array_equal(one.vectors.take(np.arange(18)), other.vectors.take(np.arange(18)))
    assert tree(index).keys() == tree(tmp_path / "again").keys()
    with pytest.raises(IndexFolderError, match="an index already"):
        import_npz(tmp_path / "x.npz", tmp_path / "again")
    with pytest.raises(ConfigError, match=r"must end in \.npz"):
        export_npz(index, tmp_path / "x.zip")


def test_several_encoders_in_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    opened = _count_opens(monkeypatch)
    report = build_index(corpus, tmp_path / "both", encoder=[FAKE, DESCRIPTOR], batch_size=4)
    assert report.encoded == 18
    assert opened == [18]  # each photo was decoded once
    for spec in (FAKE, DESCRIPTOR):
        build_index(corpus, tmp_path / spec.family, encoder=spec)
        alone = open_index(tmp_path / spec.family)
        among = open_index(tmp_path / "both", load_encoder(spec).contract)
        assert among.encoder == alone.encoder
        np.testing.assert_array_equal(among.vectors.take(np.arange(18)), alone.vectors.take(np.arange(18)))
    assert [e.name for e in encoders_of(tmp_path / "both")] == ["fake", "descriptor"]
    assert open_index(tmp_path / "both").encoder.name == "fake"
    with pytest.raises(EncoderMismatchError, match="they differ in"):
        open_index(tmp_path / "both", load_encoder(ModelSpec("fake", "other")).contract)
    with pytest.raises(EncoderMismatchError, match="--rebuild"):
        build_index(corpus, tmp_path / "both", encoder=FAKE)
    with pytest.raises(IndexFolderError, match="one encoder"):
        build_index(corpus, tmp_path / "both.npz", encoder=[FAKE, DESCRIPTOR])


def test_an_index_of_several_encoders_changes_as_one(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    build_index(corpus, tmp_path / "index", encoder=[FAKE, DESCRIPTOR])
    (corpus / "red/3.png").unlink()
    picture(COLOURS["red"], seed=777).save(corpus / "red/new.png")
    assert build_index(corpus, tmp_path / "index", encoder=[FAKE, DESCRIPTOR]).encoded == 1
    build_index(corpus, tmp_path / "fresh", encoder=[FAKE, DESCRIPTOR])
    assert tree(tmp_path / "index") == tree(tmp_path / "fresh")
    with pytest.raises(ConfigError, match="fake, descriptor; choose one"):
        export_npz(tmp_path / "index", tmp_path / "x.npz")
    assert export_npz(tmp_path / "index", tmp_path / "x.npz", "descriptor") == 18
    assert open_index(tmp_path / "x.npz").encoder.name == "descriptor"
    assert remove_from_index(tmp_path / "index", labels=["red"]).indexed == 12
    assert problems_of(tmp_path / "index") == []


def test_a_structure_that_was_asked_for_stays(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", per_label=10)
    search = SearchOptions(factory="HNSW8")
    build_index(corpus, tmp_path / "index", encoder=FAKE, search=search)
    remove_from_index(tmp_path / "index", paths=["red/0.png"])
    add_photos(write_corpus(tmp_path / "more", seed=4000), tmp_path / "index")
    assert open_index(tmp_path / "index").operating_point.factory == "HNSW8"


@pytest.mark.parametrize("name", ["shards/000001.npy", "shards/000001.1.npy", "shards/000001.parquet"])
def test_verify_names_every_damaged_file(tmp_path: Path, name: str) -> None:
    build_index(write_corpus(tmp_path / "corpus"), tmp_path / "index", encoder=[FAKE, DESCRIPTOR])
    for damaged in (name, "failures.jsonl"):
        path = tmp_path / "index" / damaged
        path.write_bytes(path.read_bytes()[:-1] + b"\x01" if path.stat().st_size else b"\x01")
    problems = problems_of(tmp_path / "index")
    assert len(problems) == 2
    assert any(Path(name).name in line for line in problems)
    assert any("failures.jsonl" in line for line in problems)


def test_a_corpus_that_cannot_be_read_does_not_replace_one_that_could(index: Path, tmp_path: Path) -> None:
    before = tree(index)
    for path in sorted((tmp_path / "corpus").rglob("*.png"))[:2]:
        path.write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(CorpusError, match=r"2 of 18 images .*--max-bad-ratio from 0\.05"):
        build_index(tmp_path / "corpus", index, encoder=FAKE)
    assert tree(index) == before
    assert build_index(tmp_path / "corpus", index, encoder=FAKE, max_bad_ratio=0.2).indexed == 16
    assert len(open_index(index)) == 16


def _open(path: Path):
    from PIL import Image

    return Image.open(path).convert("RGB")


def _failures(index: Path) -> list[str]:
    return [json.loads(line)["path"] for line in (index / "failures.jsonl").read_text().splitlines()]


def _count_opens(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    from lmm_classifier.index import reading

    counts = [0]
    real = reading.open_image

    def counted(*arguments, **options):
        counts[0] += 1
        return real(*arguments, **options)

    monkeypatch.setattr(reading, "open_image", counted)
    return counts
