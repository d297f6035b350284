"""From unknown photos to groups, to a queue that learns, and a review replayed: on plain colours."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from lmm_classifier.api.build_index import build_index
from lmm_classifier.api.hybrid_classifier import HybridClassifier
from lmm_classifier.calibration.calibrate import calibrate
from lmm_classifier.config.pipeline import PipelineConfig
from lmm_classifier.errors import RunError
from lmm_classifier.labelling.active_queue import ActiveQueue
from lmm_classifier.labelling.cluster_store import PROPOSALS, propose_groups, read_groups, write_groups
from lmm_classifier.labelling.run import label_photos
from lmm_classifier.labelling.run_store import LabellingRun
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.types import UNKNOWN
from shell import run
from synthetic import COLOURS, picture, write_corpus

NEW = {"yellow": (230, 220, 40), "black": (20, 20, 20)}
SETTINGS = {"encoder": {"family": "fake"}, "rerank": {"enabled": False}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibrated index of three colours, a folder of five, and a run over it."""
    folder = tmp_path_factory.mktemp("colours")
    build_index(write_corpus(folder / "corpus", 20), folder / "index", encoder=ModelSpec("fake"))
    config = PipelineConfig.model_validate({**SETTINGS, "retrieval": {"index_path": folder / "index"}})
    config.to_yaml(folder / "config.yaml")
    classifier = HybridClassifier(config)
    calibrate(classifier)
    for name, colour in (COLOURS | NEW).items():
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(12):
            picture(colour, 1000 * colour[0] + i).save(folder / "photos" / name / f"{i}.png")
    label_photos(folder / "photos", classifier, folder / "run")
    return folder


def colour_of(opened: LabellingRun, row: int) -> str:
    return opened.row(row).path.partition("/")[0]


def test_each_new_colour_is_a_group(made: Path) -> None:
    opened = LabellingRun(made / "run")
    unknown = [row for row, x in enumerate(opened.columns("label")["label"].to_pylist()) if x == UNKNOWN]
    assert {colour_of(opened, row) for row in unknown} >= set(NEW)
    groups = propose_groups(opened)
    shown = [Counter(colour_of(opened, row) for row in group.members) for group in groups]
    assert {next(iter(colours)) for colours in shown if len(colours) == 1} >= set(NEW)
    for group in groups:
        assert set(group.representatives) <= set(group.members)
        assert [label for label, _ in group.nearest]
        assert {label for label, _ in group.nearest} <= set(COLOURS)


def test_the_command_tells_and_keeps_them(made: Path) -> None:
    done = run("label", "propose", "run", "--captioner", "fake", cwd=made)
    assert (done.returncode, done.stderr) == (0, "")
    assert "unknown photos in" in done.stdout
    assert done.stdout.endswith("run/proposals.json\n")
    opened = LabellingRun(made / "run")
    kept = read_groups(opened)
    assert kept is not None
    assert [group.members for group in kept] == [group.members for group in propose_groups(opened)]
    assert all(len(group.captions) == len(group.representatives) for group in kept)
    (made / "run" / PROPOSALS).unlink()


def test_damaged_groups_are_refused_and_those_of_other_photos_left(made: Path) -> None:
    opened = LabellingRun(made / "run")
    path = write_groups(opened, propose_groups(opened))
    body = json.loads(path.read_bytes())
    path.write_text(json.dumps(body | {"groups": []}))
    with pytest.raises(RunError, match=r"proposals.json is damaged.*label propose"):
        read_groups(opened)
    path.unlink()
    assert read_groups(opened) is None


def test_groups_of_what_was_answered_otherwise_are_not_shown(made: Path, tmp_path: Path) -> None:
    """The same photos, by an index that has learned one of the colours meanwhile."""
    opened = LabellingRun(made / "run")
    write_groups(opened, propose_groups(opened))
    build_index(made / "photos", tmp_path / "index", encoder=ModelSpec("fake"))
    config = PipelineConfig.model_validate({**SETTINGS, "retrieval": {"index_path": tmp_path / "index"}})
    again = label_photos(made / "photos", HybridClassifier(config), tmp_path / "run").run
    (tmp_path / "run" / PROPOSALS).write_bytes((made / "run" / PROPOSALS).read_bytes())
    assert read_groups(opened) is not None
    assert read_groups(again) is None
    (made / "run" / PROPOSALS).unlink()


def test_the_queue_learns_what_a_group_is_called(made: Path) -> None:
    opened = LabellingRun(made / "run")
    teaching = ActiveQueue(opened)
    before = teaching({})
    assert sorted(row for item in before for row in item.members) == opened.readable().tolist()
    groups = [item for item in before if item.kind == "group"]
    yellow = next(g for g in groups if {colour_of(opened, row) for row in g.members} == {"yellow"})
    assert yellow.suggestion is None
    assert (made / "run" / PROPOSALS).exists()  # what the keys of the page's groups stand for

    decided = dict.fromkeys(yellow.members[:4], "yellow")
    after = {item.group: item for item in teaching(decided) if item.kind == "group"}
    assert after[yellow.group].suggestion == "yellow"
    assert after[yellow.group].priority < yellow.priority
    (made / "run" / PROPOSALS).unlink()


def test_without_a_calibration_the_runs_own_answers_make_the_order(config: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(5):
        picture(NEW["yellow"], i).save(tmp_path / f"photos/{i}.png")
    opened = label_photos(tmp_path / "photos", HybridClassifier.from_yaml(config), tmp_path / "run").run
    teaching = ActiveQueue(opened)
    before, after = teaching({}), teaching({0: "yellow"})
    assert sorted(item.rows for item in after) == sorted(item.rows for item in before)
    assert after[-1].rows == (0,)  # it was decided
    assert {item.rows: item.suggestion for item in after} == {item.rows: item.suggestion for item in before}


def test_a_review_is_replayed(made: Path) -> None:
    done = run(
        "label",
        "simulate",
        "photos",
        "-c",
        "config.yaml",
        "-o",
        "trial",
        "--looks",
        "20",
        "--orders",
        "2",
        cwd=made,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("60 photos, accuracy ")
    found = json.loads((made / "trial/simulation.json").read_bytes())
    assert (found["photos"], found["new_labels"]) == (60, sorted(NEW))
    assert found["queue"]["labels"][0] == 3
    assert found["queue"]["labels"][-1] == 5
    assert found["queue"]["accuracy"][-1] > max(0.9, found["queue"]["accuracy"][0])
    assert len(found["random"]) == 2
    assert (made / "trial/simulation.html").read_text("utf-8").count("<svg") == 1


def test_a_simulation_needs_a_calibration(config: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path / "photos", 2, seed=50)
    done = run("label", "simulate", "photos", "-c", config, "-o", "trial", cwd=tmp_path)
    assert done.returncode == 1
    assert "a simulation needs a calibrated index" in done.stderr
