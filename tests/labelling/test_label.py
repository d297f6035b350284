"""`label run FOLDER` as a shell runs it: its tables and page, odd files, and what it refuses."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from html_page import HOSTILE, parsed
from labelled import table, write_photos
from lmm_classifier.api.build_index import add_photos
from lmm_classifier.api.hybrid_classifier import HybridClassifier
from lmm_classifier.config.pipeline import PipelineConfig
from lmm_classifier.errors import ConfigError, RunError
from lmm_classifier.labelling.run import PACKED_ROWS, label_photos
from lmm_classifier.labelling.run_store import LabellingRun
from lmm_classifier.models.loading import load_encoder
from lmm_classifier.models.spec import ModelSpec
from shell import run
from synthetic import COLOURS, picture, write_corpus

MARKUP = HOSTILE.replace("/", "\N{FRACTION SLASH}")  # as a file's name


def test_each_photo_is_a_row_with_its_answer_and_evidence(config: Path, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 5)
    done = run("label", "run", photos, "-c", config, "-o", "runs/one", "--csv", "--jsonl", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].startswith("runs/one: 15 photos, 15 known, 15 in ")

    rows = table(tmp_path / "runs/one")
    assert [row["path"] for row in rows] == sorted(path.name for path in photos.iterdir())
    assert [row["label"] for row in rows] == [row["path"][4:-4] for row in rows]
    assert [row["sha256"] for row in rows] == [
        sha256((photos / r["path"]).read_bytes()).hexdigest() for r in rows
    ]
    assert {near["label"] for row in rows for near in row["neighbours"][:5]} == set(COLOURS)
    assert all(len(row["neighbours"]) == 10 and row["timings"] for row in rows)

    single = run("classify", photos, "-c", config, "--json", cwd=tmp_path)
    for row, line in zip(rows, map(json.loads, single.stdout.splitlines()), strict=True):
        assert (row["label"], row["score"], row["reason"]) == (line["label"], line["score"], line["reason"])
        assert row["neighbours"] == line["neighbours"]
        assert row["candidates"] == line["candidates"]

    lines = [json.loads(line) for line in (tmp_path / "runs/one/results.jsonl").read_text().splitlines()]
    assert [line["path"] for line in lines] == [row["path"] for row in rows]
    assert [line["neighbours"] for line in lines] == [row["neighbours"] for row in rows]
    with (tmp_path / "runs/one/results.csv").open(newline="", encoding="utf-8") as file:
        cells = list(csv.DictReader(file))
    assert [cell["label"] for cell in cells] == [row["label"] for row in rows]
    assert cells[0]["nearest_path"] == rows[0]["neighbours"][0]["path"]

    about = json.loads((tmp_path / "runs/one/run.json").read_bytes())
    assert about["counts"]["labels"] == dict.fromkeys(sorted(COLOURS), 5)
    assert about["settings"]["encoder"]["family"] == "fake"
    assert about["versions"]["numpy"]
    assert about["index_digest"]
    assert about["encoders"][0]["name"] == "fake"
    page = parsed(tmp_path / "runs/one/report.html")
    assert Counter(tag for tag, _ in page.seen)["img"] == 15


def test_rows_stay_in_order_where_they_are_more_than_are_held_as_objects(
    config: Path, tmp_path: Path
) -> None:
    photos = write_photos(tmp_path / "photos", (PACKED_ROWS + 60) // 3)
    (photos / "020-cut.jpg").write_bytes(b"\xff\xd8\xff\xe0\0\x10JFIF")
    label_photos(photos, HybridClassifier(PipelineConfig.from_yaml(config)), tmp_path / "one")
    made = LabellingRun(tmp_path / "one")
    rows = [row for columns in made.tables() for row in columns.to_pylist()]
    assert len(list((tmp_path / "one/shards").glob("*.parquet"))) == 1
    assert [row["path"] for row in rows] == sorted(path.name for path in photos.iterdir())
    answered = [row for row in rows if row["error_code"] is None]
    assert len(answered) == len(rows) - 1 > PACKED_ROWS
    assert [row["label"] for row in answered] == [row["path"][4:-4] for row in answered]
    assert [row["sha256"] for row in answered] == [
        sha256((photos / row["path"]).read_bytes()).hexdigest() for row in answered
    ]
    encode = load_encoder(ModelSpec("fake")).encode
    expected = encode([Image.open(photos / row["path"]).convert("RGB") for row in answered])
    assert np.allclose(made.vectors(), expected, atol=1e-6)


def test_a_second_time_nothing_is_done_again(config: Path, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 4)
    assert run("label", "run", photos, "-c", config, "-o", "one", cwd=tmp_path).returncode == 0
    before = (tmp_path / "one/results.parquet").read_bytes()
    again = run("label", "run", photos, "-c", config, "-o", "one", cwd=tmp_path)
    assert "12 of them before, 0 in " in again.stdout
    assert (tmp_path / "one/results.parquet").read_bytes() == before


def odd_files(folder: Path) -> None:
    """Names and contents that a folder of photos has in the end."""
    for name in (
        MARKUP,
        "=1+1",
        "-leading",
        "\N{GREEK SMALL LETTER ALPHA}\nline",
    ):
        picture(COLOURS["red"], 3).save(folder / f"{name}.png")
    picture(COLOURS["red"], 4).save(os.fsencode(folder) + b"/caf\xe9.png")
    (folder / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0\0\x10JFIF")
    (folder / "page.png").write_text("<html>")
    (folder / "empty.gif").touch()
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "notes.txt").write_text("no photo")


def test_odd_files_are_rows_with_a_code(config: Path, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 2)
    odd_files(photos)
    done = run("label", "run", photos, "-c", config, "-o", "one", "--csv", "--jsonl", cwd=tmp_path)
    assert done.returncode == 2
    assert "1 files that are not photos are left out" in done.stderr
    rows = {row["path"]: row for row in table(tmp_path / "one")}
    codes = {path: row["error_code"] for path, row in rows.items() if row["error_code"]}
    assert codes == {
        "cut.jpg": "truncated",
        "page.png": "unsupported_format",
        "empty.gif": "empty_file",
        "gone.png": "not_found",
        "pipe.png": "not_a_file",
    }
    assert all(rows[path]["label"] is None and rows[path]["sha256"] is None for path in codes)
    assert all(
        row["label"] == "red" for path, row in rows.items() if path not in codes and path[0] not in "0"
    )
    assert rows["caf\\udce9.png"]["path_bytes"] == b"caf\xe9.png"
    assert [path for path, row in rows.items() if row["path_bytes"]] == ["caf\\udce9.png"]
    lines = [json.loads(line) for line in (tmp_path / "one/results.jsonl").read_text().splitlines()]
    assert {os.fsencode(line["path"]) for line in lines} == {
        path.removeprefix(os.fsencode(photos) + b"/")
        for path in map(os.fsencode, photos.iterdir())
        if not path.endswith(b".txt")
    }
    with (tmp_path / "one/results.csv").open(newline="", encoding="utf-8") as file:
        assert {cell["path"][0] for cell in csv.DictReader(file)}.isdisjoint("=+-@\t")
    assert len(LabellingRun(tmp_path / "one").vectors()) == len(rows) - len(codes)


def test_names_with_markup_are_text_on_the_page(config: Path, tmp_path: Path) -> None:
    for name, odd in (("plain", "x"), ("hostile", MARKUP)):
        (tmp_path / name).mkdir()
        picture(COLOURS["red"], 3).save(tmp_path / name / f"{odd}.png")
        assert run("label", "run", name, "-c", config, "-o", f"run-{name}", cwd=tmp_path).returncode == 0
    plain, hostile = (parsed(tmp_path / f"run-{name}/report.html") for name in ("plain", "hostile"))
    assert hostile.seen == plain.seen
    assert "script" not in {tag for tag, _ in hostile.seen}


def test_a_table_names_the_photos(config: Path, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 2)
    (tmp_path / "some.csv").write_text(
        f"id,path\n7,photos/001-red.png\n8,{photos}/000-blue.png\n9,none.png\n"
    )
    done = run("label", "run", "some.csv", "-c", config, "-o", "one", cwd=tmp_path)
    assert done.returncode == 2
    assert [(row["path"], row["label"], row["error_code"]) for row in table(tmp_path / "one")] == [
        ("photos/001-red.png", "red", None),
        (f"{photos}/000-blue.png", "blue", None),
        ("none.png", None, "not_found"),
    ]


@pytest.mark.parametrize(
    ("source", "output", "said"),
    [
        ("nowhere", "one", "error: nowhere: there is no such folder; give a folder of photos"),
        ("empty", "one", "error: there is no photo in empty"),
        (
            "photos",
            "photos",
            "error: photos holds something else than a labelling run; give --output a new folder",
        ),
        ("photos", "config.yaml", "error: config.yaml is a file; give --output a folder"),
        ("odd.jsonl", "one", "error: odd.jsonl:1: the path is no name that a file can have"),
        ("labels.csv", "one", "error: labels.csv:1: the header must name path once, it is ['label']"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    source: str, output: str, said: str, config: Path, tmp_path: Path
) -> None:
    write_photos(tmp_path / "photos", 1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "labels.csv").write_text("label\nred\n")
    (tmp_path / "odd.jsonl").write_text(json.dumps({"path": "a\ud800.png"}))
    done = run("label", "run", source, "-c", config, "-o", output, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"{said}\n")


def test_the_command_of_before_works_without_its_name(config: Path, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 2)
    before = run("label", photos, "-c", config, "-o", "one", cwd=tmp_path)
    now = run("label", "run", photos, "-c", config, "-o", "two", cwd=tmp_path)
    assert (before.returncode, now.returncode) == (0, 0)
    assert [row["label"] for row in table(tmp_path / "one")] == [
        row["label"] for row in table(tmp_path / "two")
    ]
    mistyped = run("label", "propos", "-c", config, "-o", "three", cwd=tmp_path)
    said = "error: there is no folder propos; did you mean 'propose'?\n"
    assert (mistyped.returncode, mistyped.stdout, mistyped.stderr) == (1, "", said)


def test_all_bad_is_a_failure(config: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/x.png").write_bytes(b"nothing")
    assert run("label", "run", "bad", "-c", config, "-o", "one", cwd=tmp_path).returncode == 1
    assert [row["error_code"] for row in table(tmp_path / "one")] == ["unsupported_format"]


def test_a_run_is_of_one_index(classifier: HybridClassifier, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 2)
    label_photos(photos, classifier, tmp_path / "one")
    add_photos(write_corpus(tmp_path / "more", seed=50), tmp_path / "index")
    with pytest.raises(RunError, match="was made with other index: give another --output, or --restart"):
        label_photos(photos, classifier, tmp_path / "one")
    assert len(LabellingRun(tmp_path / "one")) == 6
    done = label_photos(photos, classifier, tmp_path / "one", restart=True)
    assert (done.before, len(done.run)) == (0, 6)


def test_an_index_that_changes_meanwhile_ends_the_run(classifier: HybridClassifier, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 4)
    more = write_corpus(tmp_path / "more", seed=50)

    def change(progress: object) -> None:
        if progress.seen == 9:  # type: ignore[attr-defined]
            add_photos(more, tmp_path / "index")

    with pytest.raises(RunError, match="index was changed while .*one was being made"):
        label_photos(photos, classifier, tmp_path / "one", shard_rows=4, on_progress=change)
    assert len(LabellingRun(tmp_path / "one")) == 8


def test_a_photo_in_which_a_step_finds_nothing_is_a_row_with_a_code(config: Path, tmp_path: Path) -> None:
    """The fake finds faces where it is bright."""
    photos = tmp_path / "photos"
    photos.mkdir()
    picture((250, 250, 250), 1).save(photos / "bright.png")
    picture((10, 10, 10), 1).save(photos / "dark.png")
    detect = {"detect": {"model": {"family": "fake", "weights": "face"}}}
    steps = [detect, {"focus": {"kind": "face"}}, {"embed": {"encoder": {"family": "fake"}}},
             {"retrieve": {"index": str(tmp_path / "index")}}, {"vote": {}}, {"open_set": {}}]  # fmt: skip
    classifier = HybridClassifier(PipelineConfig.model_validate({"pipeline": steps}))
    done = label_photos(photos, classifier, tmp_path / "one").run
    bright, dark = (done.row(number) for number in range(2))
    assert bright.answer is not None
    assert dark.error is not None
    assert dark.error.code == "not_answered"
    assert "no_face" in dark.error.reason


def test_two_at_once_are_one_too_many(classifier: HybridClassifier, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 1)
    refused = []

    def again(_: object) -> None:
        if not refused:
            with pytest.raises(ConfigError, match="in use by another labelling run") as error:
                label_photos(photos, classifier, tmp_path / "one")
            refused.append(error.value)

    label_photos(photos, classifier, tmp_path / "one", on_progress=again)
    assert len(refused) == 1
    assert len(LabellingRun(tmp_path / "one")) == 3
