"""A run that is killed and begun again is the run that was not, but for the times it took."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import numpy as np
import pytest

from labelled import attempt, table, write_photos
from lmm_classifier.api.hybrid_classifier import HybridClassifier
from lmm_classifier.errors import RunError
from lmm_classifier.labelling.run import label_photos
from lmm_classifier.labelling.run_store import SHARDS, LabellingRun
from lmm_classifier.labelling.table_export import write_results
from lmm_classifier.storage.progress import Progress
from shell import forks

SHARD = 8


def untimed(run: Path) -> list[dict[str, object]]:
    return [{key: value for key, value in row.items() if key != "timings"} for row in table(run)]


def killed(*arguments: object) -> None:
    """`attempt` in a process of its own, which ends by a signal."""
    child = forks().Process(target=attempt, args=arguments)
    child.start()
    child.join()
    assert child.exitcode in {0, -signal.SIGALRM}


@pytest.fixture
def whole(classifier: HybridClassifier, tmp_path: Path) -> Path:
    """A run that nobody disturbed."""
    photos = write_photos(tmp_path / "photos", 15)
    (photos / "bad.png").write_bytes(b"no photo")
    write_results(label_photos(photos, classifier, tmp_path / "whole", shard_rows=SHARD).run)
    return tmp_path / "whole"


def same(classifier: HybridClassifier, run: Path, whole: Path) -> int:
    """Finish a run, and compare it with that one; returns how much was there."""
    done = label_photos(whole.parent / "photos", classifier, run, shard_rows=SHARD)
    write_results(done.run)
    assert untimed(run) == untimed(whole)
    np.testing.assert_array_equal(done.run.vectors(), LabellingRun(whole).vectors())
    assert not list(run.rglob("*.tmp"))
    return done.before


@pytest.mark.parametrize("at", [1, 8, 9, 30, 45, 46])
def test_killed_at_a_photo(
    at: int, config: Path, classifier: HybridClassifier, whole: Path, tmp_path: Path
) -> None:
    killed(config, tmp_path / "photos", tmp_path / "one", SHARD, at)
    before = same(classifier, tmp_path / "one", whole)
    assert at - SHARD <= before <= at  # a shard is done again at most


def seconds_of_a_run(photos: Path, classifier: HybridClassifier, run: Path) -> float:
    """From the first photo to the last: within that the moments lie at which it is killed."""
    times: list[float] = []
    label_photos(
        photos, classifier, run, shard_rows=SHARD, on_progress=lambda _: times.append(time.monotonic())
    )
    return times[-1] - times[0]


@pytest.mark.parametrize("points", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_any_time_again_and_again(
    points: int, config: Path, classifier: HybridClassifier, whole: Path, tmp_path: Path
) -> None:
    took = seconds_of_a_run(tmp_path / "photos", classifier, tmp_path / "timed")
    seeded = np.random.default_rng(7)
    befores = []
    for number in range(points):
        run = tmp_path / f"run{number}"
        for _ in range(2):
            killed(config, tmp_path / "photos", run, SHARD, 1, seeded.uniform(0, took))
        befores.append(same(classifier, run, whole))
    assert max(befores) > 0  # not all were killed before anything was on the disk


@pytest.mark.parametrize("damage", ["rows", "vectors", "gone"])
def test_what_a_disk_lost_is_done_again(
    damage: str, classifier: HybridClassifier, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "one"
    label_photos(tmp_path / "photos", classifier, run, shard_rows=SHARD)
    shard = run / SHARDS / ("000000016.npy" if damage == "vectors" else "000000016.parquet")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0xFF
    if damage == "gone":
        shard.unlink()
    else:
        shard.write_bytes(content)
    assert same(classifier, run, whole) == 16


def test_a_restart_that_is_killed_leaves_no_answer_of_before(
    config: Path, classifier: HybridClassifier, whole: Path, tmp_path: Path
) -> None:
    with config.open("a", encoding="utf-8") as file:
        file.write("labels: [blue, green]\n")
    other = HybridClassifier.from_yaml(config)
    with pytest.raises(RunError, match="was made with other settings"):
        label_photos(tmp_path / "photos", other, whole, shard_rows=SHARD)

    def stop(progress: Progress) -> None:
        if progress.seen == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        label_photos(tmp_path / "photos", other, whole, restart=True, shard_rows=SHARD, on_progress=stop)
    run = label_photos(tmp_path / "photos", other, whole, shard_rows=SHARD).run
    assert set(run.columns("label")["label"].drop_null().to_pylist()) <= {"blue", "green", "unknown"}


def test_counts_are_of_the_photos_that_are_there(
    classifier: HybridClassifier, whole: Path, tmp_path: Path
) -> None:
    write_results(LabellingRun(whole))
    for photo in sorted((tmp_path / "photos").iterdir())[SHARD * 2 :]:
        photo.unlink()
    run = label_photos(tmp_path / "photos", classifier, whole, shard_rows=SHARD).run
    assert (len(run), run.manifest.counts and run.manifest.counts["photos"]) == (16, 16)
    assert not (whole / "results.parquet").exists()  # it told of more


def test_photos_that_came_later_are_labelled_too(
    classifier: HybridClassifier, whole: Path, tmp_path: Path
) -> None:
    (tmp_path / "photos/zz.png").write_bytes((tmp_path / "photos/000-red.png").read_bytes())
    done = label_photos(tmp_path / "photos", classifier, whole, shard_rows=SHARD)
    assert (done.before, len(done.run), done.forgotten) == (40, 47, 6)
    row = done.run.row(46)
    assert (row.path, row.answer and row.answer.label) == ("zz.png", "red")
