"""Repeated, interrupted and disturbed builds: the index always ends as a build from nothing would make it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fitted import write_fitted
from lmm_classifier.api.build_index import build_index
from lmm_classifier.corpus.source import read_corpus
from lmm_classifier.errors import CorpusError, EncoderMismatchError, IndexFolderError, ModelError
from lmm_classifier.index.build import BuildOptions, BuildReport, write_index
from lmm_classifier.index.calibration import read_calibration
from lmm_classifier.index.search import open_index
from lmm_classifier.models.loading import load_encoder
from lmm_classifier.models.spec import ModelSpec
from shell import python
from synthetic import COLOURS, Disturbed, picture, write_corpus

FAKE = ModelSpec("fake")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmm_classifier.index.build.SHARD_ROWS", 5)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def build(corpus: Path, output: Path, **options: bool) -> BuildReport:
    return build_index(corpus, output, encoder=FAKE, batch_size=2, **options)


def test_synchronising_encodes_only_what_is_new_and_ends_as_a_build_from_nothing(
    corpus: Path, tmp_path: Path
) -> None:
    assert build(corpus, tmp_path / "index").encoded == 18
    (corpus / "blue/0.png").unlink()
    (corpus / "green/1.png").rename(corpus / "green/renamed.png")
    (corpus / "red/2.png").rename(corpus / "blue/moved.png")
    picture(COLOURS["red"], seed=777).save(corpus / "red/3.png")
    picture(COLOURS["red"], seed=778).save(corpus / "red/new.png")
    (corpus / "red/touched.png").write_bytes((corpus / "red/4.png").read_bytes())
    report = build(corpus, tmp_path / "index")
    assert (report.indexed, report.encoded) == (19, 2)
    build(corpus, tmp_path / "fresh")
    assert tree(tmp_path / "index") == tree(tmp_path / "fresh")
    assert build(corpus, tmp_path / "index").encoded == 0
    assert build(corpus, tmp_path / "index", rebuild=True).encoded == 19
    assert tree(tmp_path / "index") == tree(tmp_path / "fresh")


def test_same_size_and_time_is_trusted_and_other_content_is_seen_without_the_cache(
    corpus: Path, tmp_path: Path
) -> None:
    build(corpus, tmp_path / "index")
    (tmp_path / "index/file-stats.npy").unlink()
    assert build(corpus, tmp_path / "index").encoded == 0  # contents are compared instead
    (tmp_path / "index/file-stats.npy").write_bytes(b"nonsense")
    assert build(corpus, tmp_path / "index").encoded == 0


def test_copies_and_conflicting_labels_are_reported(corpus: Path, tmp_path: Path) -> None:
    shutil.copy(corpus / "red/0.png", corpus / "red/copy.png")
    shutil.copy(corpus / "red/1.png", corpus / "blue/wrong.png")
    report = build(corpus, tmp_path / "index")
    assert report.duplicates == 2
    assert report.conflicts == (("blue/wrong.png", "red/1.png"),)


def dies_in_the_third_shard() -> Disturbed:
    """An encoder whose memory runs out in its seventh call: two shards of three batches are done."""
    encoder = load_encoder(FAKE)
    calls = iter(range(1, 8))

    def dies(images: list[Image.Image]) -> np.ndarray:
        if next(calls) == 7:
            raise ModelError("out of memory")
        return encoder.encode(images)

    return Disturbed(encoder.contract, dies)


def test_an_interrupted_build_goes_on_where_it_was(corpus: Path, tmp_path: Path) -> None:
    build(corpus, tmp_path / "undisturbed")
    with pytest.raises(ModelError):
        write_index(
            read_corpus(corpus),
            [dies_in_the_third_shard()],
            tmp_path / "index",
            BuildOptions(batch_size=2),
        )
    assert not (tmp_path / "index").exists()
    report = build(corpus, tmp_path / "index")
    assert report.encoded == 18 - 10
    assert tree(tmp_path / "index") == tree(tmp_path / "undisturbed")
    assert not list(tmp_path.glob(".index*"))


def test_finished_shards_whose_photos_changed_since_are_done_again(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        write_index(
            read_corpus(corpus),
            [dies_in_the_third_shard()],
            tmp_path / "index",
            BuildOptions(batch_size=2),
        )
    picture(COLOURS["blue"], seed=31).save(corpus / "blue/0.png")
    assert build(corpus, tmp_path / "index").encoded == 18 - 5
    build(corpus, tmp_path / "fresh")
    assert tree(tmp_path / "index") == tree(tmp_path / "fresh")


def test_a_file_that_changes_while_the_build_runs_is_reported(corpus: Path, tmp_path: Path) -> None:
    encoder = load_encoder(FAKE)

    def meddles(images: list[Image.Image]) -> np.ndarray:
        picture(COLOURS["blue"], seed=99).save(corpus / "blue/0.png")
        return encoder.encode(images)

    report = write_index(
        read_corpus(corpus),
        [Disturbed(encoder.contract, meddles)],
        tmp_path / "index",
        BuildOptions(batch_size=2),
    )
    assert report.changed == ("blue/0.png",)
    assert build(corpus, tmp_path / "index").changed == ()


def test_two_builders_at_once(corpus: Path, tmp_path: Path) -> None:
    encoder = load_encoder(FAKE)

    def builds_again(images: list[Image.Image]) -> np.ndarray:
        with pytest.raises(IndexFolderError, match="another build is writing"):
            build(corpus, tmp_path / "index")
        return encoder.encode(images)

    write_index(
        read_corpus(corpus),
        [Disturbed(encoder.contract, builds_again)],
        tmp_path / "index",
        BuildOptions(batch_size=18),
    )
    assert len(open_index(tmp_path / "index")) == 18


def test_what_cannot_be_synchronised_says_rebuild(corpus: Path, tmp_path: Path) -> None:
    build(corpus, tmp_path / "index")
    with pytest.raises(EncoderMismatchError, match="--rebuild"):
        build_index(corpus, tmp_path / "index", encoder=ModelSpec("descriptor"))
    shard = tmp_path / "index/shards/000000.npy"
    shard.write_bytes(shard.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(IndexFolderError, match=r"000000\.npy is damaged.*--rebuild"):
        build(corpus, tmp_path / "index")
    assert build(corpus, tmp_path / "index", rebuild=True).indexed == 18


@pytest.mark.parametrize("stranger", ["notes.txt", "shards/notes.txt", "deep/er/notes.txt"])
def test_a_strangers_file_in_an_index_folder_is_never_deleted(
    corpus: Path, tmp_path: Path, stranger: str
) -> None:
    build(corpus, tmp_path / "index")
    (tmp_path / "index" / stranger).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "index" / stranger).write_text("only copy")
    with pytest.raises(IndexFolderError, match="not an index folder"):
        build(corpus, tmp_path / "index", rebuild=True)
    assert (tmp_path / "index" / stranger).read_text() == "only copy"


def test_another_programs_manifest_makes_no_index(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "webapp").mkdir()
    (tmp_path / "webapp/manifest.json").write_text('{"name": "my app"}')
    with pytest.raises(IndexFolderError, match="not an index folder"):
        build(corpus, tmp_path / "webapp")
    assert (tmp_path / "webapp/manifest.json").read_text() == '{"name": "my app"}'


def test_the_calibration_stays_with_its_state_of_the_index(corpus: Path, tmp_path: Path) -> None:
    build(corpus, tmp_path / "index")
    fitted = write_fitted(tmp_path / "index")
    assert build(corpus, tmp_path / "index").warnings == ()
    assert getattr(read_calibration(tmp_path / "index"), "calibration", None) == fitted
    picture(COLOURS["red"], seed=777).save(corpus / "red/3.png")
    assert any("calibrate again" in line for line in build(corpus, tmp_path / "index").warnings)
    assert read_calibration(tmp_path / "index") is None


def test_an_index_taken_away_by_a_killed_build_comes_back_with_its_calibration(
    corpus: Path, tmp_path: Path
) -> None:
    build(corpus, tmp_path / "index")
    fitted = write_fitted(tmp_path / "index")
    (tmp_path / ".index.partial").mkdir()
    (tmp_path / "index").rename(tmp_path / ".index.partial/old")  # killed between its two renames
    assert build(corpus, tmp_path / "index").encoded == 0
    assert getattr(read_calibration(tmp_path / "index"), "calibration", None) == fitted
    assert not (tmp_path / ".index.partial").exists()


def test_an_index_inside_its_own_corpus_is_refused(corpus: Path) -> None:
    with pytest.raises(CorpusError, match="lies inside the corpus"):
        build(corpus, corpus / "index")
    assert not (corpus / "index").exists()


# What the child does: build, and die without any clean-up at the n-th call that changes the disk.
CHILD = """
import os, signal, sys
from pathlib import Path
import lmm_classifier.index.build as b
from lmm_classifier.api.build_index import build_index
from lmm_classifier.models.loading import load_encoder
from lmm_classifier.models.spec import ModelSpec
b.SHARD_ROWS = int(sys.argv[4])
load_encoder(ModelSpec("fake"))
corpus, output, last = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
changes = 0
def hook(event, arguments):
    global changes
    if event == "open" and isinstance(arguments[2], int) and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
        return
    names = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")
    if event in names and str(output.parent) in str(arguments[0]):
        changes += 1
        if changes == last:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
build_index(corpus, output, encoder=ModelSpec("fake"), batch_size=2)
print(changes)
"""


def child(corpus: Path, output: Path, last: int, shard_rows: int = 5) -> subprocess.CompletedProcess[str]:
    output.parent.mkdir(exist_ok=True)
    return python("-c", CHILD, corpus, output, str(last), str(shard_rows))


def sweep(corpus: Path, folder: Path, points: range, shard_rows: int) -> None:
    """Kill at each point, building from nothing and synchronising in turn; build again and compare."""
    build(corpus, folder / "former/index")
    picture(COLOURS["red"], seed=777).save(corpus / "red/3.png")
    picture(COLOURS["green"], seed=778).save(corpus / "green/0new.png")
    build(corpus, folder / "undisturbed/index")
    expected = tree(folder / "undisturbed")
    for point in points:
        output = folder / f"{point}" / "index"
        if point % 2:
            shutil.copytree(folder / "former", output.parent)
        killed = child(corpus, output, point, shard_rows)
        assert killed.returncode == -9, killed.stderr
        if (output / "manifest.json").exists():
            assert len(open_index(output)) in (18, 19)  # the former or the new one, whole
        build(corpus, output)
        assert tree(output.parent) == expected, point
        shutil.rmtree(output.parent)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("shard_rows", "at_least", "step"), [(5, 60, 2), pytest.param(1, 150, 1, marks=pytest.mark.slow)]
)
def test_killed_at_every_change_of_the_disk(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard_rows: int, at_least: int, step: int
) -> None:
    monkeypatch.setattr("lmm_classifier.index.build.SHARD_ROWS", shard_rows)
    total = int(child(corpus, tmp_path / "count/index", 0, shard_rows).stdout)
    assert total > at_least
    sweep(corpus, tmp_path, range(1, total, step), shard_rows)
