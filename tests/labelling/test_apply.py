"""What was reviewed goes into the index, a tree, a table, or what Hugging Face reads; and nowhere else."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from datasets import load_dataset
from PIL import Image

from labelled import write_photos
from lmm_classifier.api.build_index import build_index
from lmm_classifier.api.hybrid_classifier import HybridClassifier
from lmm_classifier.config.pipeline import PipelineConfig
from lmm_classifier.corpus.source import read_corpus
from lmm_classifier.errors import ConfigError
from lmm_classifier.index.search import open_index
from lmm_classifier.labelling.active_queue import ActiveQueue
from lmm_classifier.labelling.agreed_labels import accepted_photos
from lmm_classifier.labelling.annotation_log import log_of
from lmm_classifier.labelling.export import write_csv, write_imagefolder, write_tree
from lmm_classifier.labelling.run import label_photos
from lmm_classifier.labelling.run_store import LabellingRun
from lmm_classifier.models.spec import ModelSpec
from shell import run
from synthetic import COLOURS, picture

YELLOW = (230, 220, 40)


@pytest.fixture
def opened(classifier: HybridClassifier, tmp_path: Path) -> LabellingRun:
    """A run of 6 photos of known colours, and 4 of a new one."""
    photos = write_photos(tmp_path / "photos", 2)
    for i in range(4):
        picture(YELLOW, 90_000 + i).save(photos / f"x{i}.png")
    return label_photos(photos, classifier, tmp_path / "run").run


def photo(opened: LabellingRun, name: str) -> tuple[str, str]:
    for number in opened.readable().tolist():
        row = opened.row(number)
        if row.path == name:
            return row.path, row.sha256 or ""
    raise AssertionError(name)


def review(opened: LabellingRun) -> None:
    """Ann says what the new ones are, but one, which Bob contradicts; one she rejects."""
    ann, bob = log_of(opened.folder, "ann"), log_of(opened.folder, "bob")
    ann.say("new", [photo(opened, f"x{i}.png") for i in (0, 1, 2)], "yellow")
    ann.say("accept", [photo(opened, "000-red.png")], "red")
    ann.say("relabel", [photo(opened, "001-red.png")], "blue")
    ann.say("reject", [photo(opened, "x3.png")])
    bob.say("accept", [photo(opened, "001-red.png")], "red")
    bob.say("skip", [photo(opened, "000-blue.png")])


def test_only_what_all_agree_on_is_taken(opened: LabellingRun) -> None:
    review(opened)
    found = accepted_photos(opened)
    assert {(Path(item.path).name, item.label) for item in found.items} == {
        ("000-red.png", "red"),
        ("x0.png", "yellow"),
        ("x1.png", "yellow"),
        ("x2.png", "yellow"),
    }
    assert found.conflicts == ("001-red.png: ann says blue, bob says red",)
    assert (found.rejected, found.gone) == (1, ())
    sure = accepted_photos(opened, unreviewed=True)
    named = {Path(item.path).name: item.label for item in sure.items}
    assert "001-red.png" not in named
    assert "x3.png" not in named
    assert {name: named[name] for name in ("000-blue.png", "001-green.png")} == {
        "000-blue.png": "blue",
        "001-green.png": "green",
    }


def test_what_has_changed_since_is_left_out(opened: LabellingRun) -> None:
    review(opened)
    picture(COLOURS["blue"], 5).save(opened.root / "x0.png")
    (opened.root / "x1.png").unlink()
    found = accepted_photos(opened)
    assert {Path(item.path).name for item in found.items} == {"000-red.png", "x2.png"}
    assert [(Path(gone.path).name, gone.code) for gone in found.gone] == [
        ("x0.png", "not_found"),
        ("x1.png", "not_found"),
    ]


def test_the_index_learns_the_new_label(opened: LabellingRun, config: Path, tmp_path: Path) -> None:
    review(opened)
    before = open_index(tmp_path / "index").records.counts()
    done = run("label", "apply", "run", cwd=tmp_path)
    assert done.returncode == 2  # one conflict
    assert "reviewers disagree: 001-red.png: ann says blue, bob says red" in done.stderr
    assert "22 images of 4 labels, 4 of them of this run, 4 encoded now" in done.stdout
    after = open_index(tmp_path / "index")
    assert after.records.counts() == before | {"red": before["red"] + 1, "yellow": 3}
    assert str(opened.root / "x0.png") in after.records.paths()
    again = run("label", "apply", "run", cwd=tmp_path)
    assert "22 images of 4 labels, 4 of them of this run, 0 encoded now" in again.stdout
    answer = HybridClassifier.from_yaml(config).classify(picture(YELLOW, 77))
    assert answer.label == "yellow"


def test_a_photo_that_is_called_as_one_of_the_corpus_does_not_take_its_place(
    classifier: HybridClassifier, tmp_path: Path
) -> None:
    (tmp_path / "photos/red").mkdir(parents=True)
    picture(YELLOW, 5).save(tmp_path / "photos/red/0.png")  # corpus/red/0.png is in the index
    opened = label_photos(tmp_path / "photos", classifier, tmp_path / "run").run
    log_of(opened.folder, "ann").say("new", [photo(opened, "red/0.png")], "yellow")
    assert run("label", "apply", "run", cwd=tmp_path).returncode == 0
    assert open_index(tmp_path / "index").records.counts() == {"blue": 6, "green": 6, "red": 6, "yellow": 1}


@pytest.mark.parametrize("way", ["copy", "link"])
def test_a_tree_is_a_corpus_in_which_nothing_is_replaced(
    way: str, opened: LabellingRun, tmp_path: Path
) -> None:
    review(opened)
    tree = tmp_path / "tree"
    (tree / "yellow").mkdir(parents=True)
    (tree / "yellow/x0.png").write_bytes(b"somebody's")
    found = accepted_photos(opened)
    assert write_tree(found, tree, way) == 4  # type: ignore[arg-type]
    assert write_tree(found, tree, way) == 0  # type: ignore[arg-type]
    assert (tree / "yellow/x0.png").read_bytes() == b"somebody's"
    made = {(item.label, (tree / item.path).read_bytes()) for item in read_corpus(tree).items}
    assert made - {("yellow", b"somebody's")} == {
        (item.label, Path(item.path).read_bytes()) for item in found.items
    }
    links = (tree / "red/000-red.png").stat().st_nlink
    assert links == (2 if way == "link" else 1)


def test_a_table_can_be_indexed(opened: LabellingRun, tmp_path: Path) -> None:
    review(opened)
    found = accepted_photos(opened)
    write_csv(found, tmp_path / "out/more.csv")
    assert read_corpus(tmp_path / "out/more.csv").items == found.items


def test_a_table_that_is_there_is_not_replaced(opened: LabellingRun, tmp_path: Path) -> None:
    (tmp_path / "corpus.csv").write_text("somebody's")
    with pytest.raises(ConfigError, match=r"corpus.csv is there already; give --csv a new file"):
        write_csv(accepted_photos(opened, unreviewed=True), tmp_path / "corpus.csv")
    assert (tmp_path / "corpus.csv").read_text() == "somebody's"


def test_copies_of_a_photo_under_two_labels_contradict_each_other(
    classifier: HybridClassifier, tmp_path: Path
) -> None:
    photos = write_photos(tmp_path / "photos", 1)
    (photos / "copy.png").write_bytes((photos / "000-red.png").read_bytes())
    opened = label_photos(photos, classifier, tmp_path / "run").run
    for name, label in (("copy.png", "rose"), ("000-red.png", "red"), ("000-blue.png", "blue")):
        log_of(opened.folder, "ann").say("relabel", [photo(opened, name)], label)
    found = accepted_photos(opened)
    assert [item.label for item in found.items] == ["blue"]
    assert len(found.conflicts) == 2


def test_hugging_face_reads_the_imagefolder(opened: LabellingRun, tmp_path: Path) -> None:
    review(opened)
    found = accepted_photos(opened)
    write_imagefolder(found, tmp_path / "hf", "copy")
    rows = load_dataset(
        "imagefolder", data_dir=str(tmp_path / "hf"), cache_dir=str(tmp_path / "cache"), split="train"
    )
    assert sorted(rows["label"]) == ["red", "yellow", "yellow", "yellow"]
    pixels = {(row["label"], row["image"].convert("RGB").tobytes()) for row in rows}
    assert pixels == {(item.label, Image.open(item.path).convert("RGB").tobytes()) for item in found.items}


def test_an_imagefolder_grows(opened: LabellingRun, tmp_path: Path) -> None:
    review(opened)
    write_imagefolder(accepted_photos(opened), tmp_path / "hf", "copy")
    log_of(opened.folder, "ann").say("accept", [photo(opened, "001-green.png")], "green")
    write_imagefolder(accepted_photos(opened), tmp_path / "hf", "copy")
    lines = [json.loads(line) for line in (tmp_path / "hf/metadata.jsonl").read_text().splitlines()]
    assert sorted(line["label"] for line in lines) == ["green", "red", "yellow", "yellow", "yellow"]
    assert all((tmp_path / "hf" / line["file_name"]).is_file() for line in lines)
    log_of(opened.folder, "ann").say("relabel", [photo(opened, "001-green.png")], "blue")
    with pytest.raises(ConfigError, match=r"metadata.jsonl calls .*001-green.png 'green', the review 'blue'"):
        write_imagefolder(accepted_photos(opened), tmp_path / "hf", "copy")


def test_a_label_that_is_no_utf8_comes_back_as_it_was(tmp_path: Path) -> None:
    """Folders of old systems have such names; Parquet has none."""
    name = os.fsdecode(b"caf\xe9")
    for i in range(4):
        for label, colour in ((name, YELLOW), ("red", COLOURS["red"])):
            (tmp_path / "corpus" / label).mkdir(parents=True, exist_ok=True)
            picture(colour, i).save(os.fsencode(tmp_path / "corpus" / label / f"{i}.png"))
    build_index(tmp_path / "corpus", tmp_path / "index", encoder=ModelSpec("fake"))
    config = {"encoder": {"family": "fake"}, "rerank": {"enabled": False}}
    settings = PipelineConfig.model_validate({**config, "retrieval": {"index_path": tmp_path / "index"}})
    (tmp_path / "photos").mkdir()
    picture(YELLOW, 77).save(tmp_path / "photos/a.png")
    opened = label_photos(tmp_path / "photos", HybridClassifier(settings), tmp_path / "run").run
    row = opened.row(0)
    assert row.answer is not None
    assert row.answer.label == "caf\\udce9"  # as its tables have it
    log_of(opened.folder, "ann").say("accept", [photo(opened, "a.png")], row.answer.label)
    assert [item.label for item in accepted_photos(opened).items] == [name]
    assert ActiveQueue(opened)({0: row.answer.label})[0].suggestion == row.answer.label


def test_a_label_that_can_be_no_folder_is_refused(opened: LabellingRun, tmp_path: Path) -> None:
    found = accepted_photos(opened, unreviewed=True)
    for label in ("../up", ".hidden", "a/b", " "):
        odd = type(found)((type(found.items[0])(found.items[0].path, label),), found.sha256[:1], 0, (), ())
        with pytest.raises(ConfigError, match="can be no folder"):
            write_tree(odd, tmp_path / "tree", "copy")
    assert not (tmp_path / "tree").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run",), "nothing of run can be taken over"),
        (("nowhere",), "nowhere is no labelling run: it has no run.json"),
        (("run", "--tree", "a", "--csv", "b"), "give one of --tree, --imagefolder and --csv"),
    ],
)
def test_what_cannot_be_is_refused(
    arguments: tuple[str, ...], said: str, opened: LabellingRun, tmp_path: Path
) -> None:
    done = run("label", "apply", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert said in done.stderr
