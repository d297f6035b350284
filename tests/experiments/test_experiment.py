"""Experiments from Python: what is shared, what is kept apart, what is done again."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments import BASE, records, write_experiment
from lmm_classifier import HybridClassifier, PipelineConfig
from lmm_classifier.api.build_index import build_index
from lmm_classifier.calibration.targets import Costs
from lmm_classifier.corpus.corpus import SkippedFile
from lmm_classifier.corpus.source import read_corpus
from lmm_classifier.errors import ConfigError, CorpusError
from lmm_classifier.evaluation.embedding_cache import EmbeddingCache
from lmm_classifier.evaluation.evaluate import evaluate
from lmm_classifier.experiments.figures import figures_of
from lmm_classifier.experiments.run import Outcome, run_experiment
from lmm_classifier.experiments.shared_indexes import link_files
from lmm_classifier.experiments.spec import CalibrateSettings, Experiment, plans
from lmm_classifier.experiments.splits import SplitSources
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.storage.progress import Progress, ignore_progress
from synthetic import COLOURS, write_corpus

EXPERIMENTS = Path(__file__).parents[2] / "config/experiments"


def carried_out(path: Path, output: Path) -> Outcome:
    return run_experiment(Experiment.from_yaml(path), path.parent, output)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment of 2 heads x 2 scores x 2 seeds, carried out into out/."""
    folder = tmp_path_factory.mktemp("experiment")
    outcome = carried_out(write_experiment(folder), folder / "out")
    assert (outcome.done, outcome.before, outcome.failed, outcome.skipped) == (8, 0, {}, {})
    return folder


class TestRuns:
    def test_one_folder_each_with_everything_that_was_asked(self, work: Path) -> None:
        runs = records(work / "out")
        assert len(runs) == 8
        for name, run in runs.items():
            folder = work / "out" / name
            assert {path.name for path in folder.iterdir()} == {
                "config.yaml", "evaluation.json", "index", "report.html", "run.json",
            }  # fmt: skip
            assert PipelineConfig.from_yaml(folder / "config.yaml").retrieval.index_path == folder / "index"
            made = json.loads((folder / "index/calibration.json").read_bytes())
            assert list(made["head"]["weights"]) == [run["cell"]["calibrate.head"]]
            assert made["novelty"]["names"] == [run["cell"]["calibrate.score"]]
            assert made["seed"] == run["seed"]
            assert run["index"]["encoders"]["fake"]
            assert run["versions"]["lmm-classifier"]
            assert run["photos"]["evaluate"]["photos"] + run["photos"]["index"]["photos"] <= 90
        listed = [entry["name"] for entry in json.loads((work / "out/experiment.json").read_bytes())["runs"]]
        assert sorted(listed) == sorted(runs)

    def test_figures_are_those_of_evaluate(self, work: Path) -> None:
        asked = Experiment.from_yaml(work / "experiment.yaml")
        for name, run in records(work / "out").items():
            parts = SplitSources(asked, ignore_progress).parts(run["seed"])
            found = evaluate(
                HybridClassifier.from_yaml(work / "out" / name / "config.yaml"),
                parts.evaluate.corpus(),
                resamples=1,
            )
            assert run["figures"] == pytest.approx(figures_of(found), abs=1e-12)
            assert run["frozen"]["held_out_labels"] == list(parts.held_out_labels)
            assert {q.shows for q in found.queries if q.group == "near"} == set(parts.held_out_labels)

    def test_indexes_are_shared_and_calibrations_are_not(self, work: Path) -> None:
        shared = list((work / "out/shared/indexes").glob("fake-*"))
        assert len(shared) == 2  # one per seed
        assert not list((work / "out/shared").rglob("calibration*"))
        inodes = {path.stat().st_ino for path in (work / "out/shared").rglob("*.npy")}
        linked = {path.stat().st_ino for path in (work / "out").glob("*/index/**/*.npy")}
        assert linked == inodes
        arrays = {run["calibration"]["arrays"]["sha256"] for run in records(work / "out").values()}
        assert len(arrays) == 4  # scores x seeds: known scores do not depend on the head

    def test_finished_runs_are_left_alone_and_a_changed_experiment_runs_what_is_new(
        self, work: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(work, tmp_path / "w")
        for path in ("base.yaml", "experiment.yaml"):
            assert (tmp_path / "w" / path).exists()
        output = tmp_path / "w/out"
        before = {name: (output / name / "run.json").stat().st_mtime_ns for name in records(output)}
        grid = {
            "calibrate.head": ["knn", "gda"],
            "calibrate.score": ["max_similarity", "mahalanobis", "vote_entropy"],
        }
        outcome = carried_out(write_experiment(tmp_path / "w", grid=grid), output)
        assert (outcome.done + len(outcome.failed), outcome.before) == (4, 8)
        after = {name: (output / name / "run.json").stat().st_mtime_ns for name in before}
        assert after == before

    def test_other_photos_are_another_run(self, work: Path, tmp_path: Path) -> None:
        shutil.copytree(work, tmp_path / "w")
        shutil.rmtree(tmp_path / "w/corpus/red")
        write_corpus(tmp_path / "new", per_label=30, seed=9)
        shutil.copytree(tmp_path / "new/red", tmp_path / "w/corpus/red")
        outcome = carried_out(tmp_path / "w/experiment.yaml", tmp_path / "w/out")
        assert (outcome.done, outcome.before) == (8, 0)

    def test_a_failing_run_stops_no_other_and_is_tried_again(self, work: Path, tmp_path: Path) -> None:
        grid = {"calibrate.head": ["knn", "knm"]}
        path = write_experiment(tmp_path, grid=grid, seeds=[0])
        for _ in range(2):
            outcome = carried_out(path, tmp_path / "out")
            [(name, reason)] = outcome.failed.items()
            assert "'knm'; did you mean 'knn'?" in reason
            run = records(tmp_path / "out")[name]
            assert (run["status"], run["error"], run["cell"]) == ("failed", reason, {"calibrate.head": "knm"})
        assert (outcome.done, outcome.before) == (0, 1)

    def test_a_reranker_that_cannot_be_opened_is_a_failed_run(self, tmp_path: Path) -> None:
        grid = {"rerank": [{"enabled": False}, {"model_name": "./nowhere"}]}
        outcome = carried_out(write_experiment(tmp_path, grid=grid, seeds=[0]), tmp_path / "out")
        assert outcome.done == 1
        [reason] = outcome.failed.values()
        assert "nowhere" in reason

    def test_it_says_where_it_stands(self, tmp_path: Path) -> None:
        heard: list[Progress] = []
        path = write_experiment(tmp_path, grid={"retrieval.top_k": [10]}, seeds=[0], calibrate=False)
        run_experiment(Experiment.from_yaml(path), path.parent, tmp_path / "out", heard.append)
        stages = list(dict.fromkeys(state.stage for state in heard))
        assert stages[0] == "reading the photos"
        assert "run 1 of 1: answering the queries" in stages
        assert not list((tmp_path / "out").rglob("calibration*"))


def test_parts_depend_on_the_photos_and_the_seed_alone(tmp_path: Path) -> None:
    path = write_experiment(tmp_path, split={"index": 0.5, "held_out": 0.2, "evaluate": 0.3})
    sources = SplitSources(Experiment.from_yaml(path), ignore_progress)
    one, again, other = (sources.parts(seed).named() for seed in (0, 0, 1))
    assert list(one) == ["index", "held_out", "evaluate"]
    assert one == again
    assert one["evaluate"] != other["evaluate"]
    photos = [photo.path for part in one.values() for photo in part.photos]
    assert len(photos) == len(set(photos))
    [held] = sources.parts(0).held_out_labels
    assert (
        {p.label for p in one["index"].photos}
        == {p.label for p in one["held_out"].photos}
        == {*COLOURS} - {held}
    )
    assert {p.label for p in one["evaluate"].photos} == {*COLOURS}
    fixed = write_experiment(tmp_path, split={"index": 0.5, "evaluate": 0.5, "seed": 4}, hold_out_labels=None)
    sources = SplitSources(Experiment.from_yaml(fixed), ignore_progress)
    assert sources.parts(0) == sources.parts(1)


def test_parts_that_are_given(tmp_path: Path) -> None:
    write_corpus(tmp_path / "index", per_label=12)
    write_corpus(tmp_path / "held", per_label=10, seed=1000)
    write_corpus(tmp_path / "evaluate", per_label=5, seed=2000)
    (tmp_path / "far").mkdir()
    shutil.copy(tmp_path / "held/red/0.png", tmp_path / "far/x.png")
    shutil.rmtree(tmp_path / "held/red")
    given = {"index": "index", "held_out": "held", "evaluate": "evaluate", "far": "far"}
    grid = {"calibrate.keep_known": [0.8, 0.9]}
    path = write_experiment(
        tmp_path, corpus=None, split=None, hold_out_labels=None, grid=grid, seeds=[0], **given
    )
    outcome = carried_out(path, tmp_path / "out")
    assert (outcome.done, outcome.failed) == (2, {})
    for run in records(tmp_path / "out").values():
        made = json.loads((tmp_path / "out" / run["name"] / "index/calibration.json").read_bytes())
        assert made["n_held_out"] == 20
        assert made["gates"]["keep_known"] == run["cell"]["calibrate.keep_known"]
        assert run["photos"]["far"]["photos"] == 1
        assert "far_auroc" in run["figures"]


class TestEmbeddedOnce:
    @pytest.fixture
    def classifiers(self, tmp_path: Path) -> list[HybridClassifier]:
        write_corpus(tmp_path / "corpus", per_label=6)
        write_corpus(tmp_path / "query", per_label=3, seed=500)
        build_index(tmp_path / "corpus", tmp_path / "index", encoder=ModelSpec("fake"))
        by_hand = {"confidence_threshold": 1.0, "open_set_threshold": 0.1}
        settings: list[dict[str, Any]] = [{"enabled": False}, {"enabled": True, "family": "fake"}]
        return [
            HybridClassifier(
                PipelineConfig(
                    encoder=ModelSpec("fake"),
                    retrieval={"index_path": tmp_path / "index", **by_hand},
                    rerank=rerank,
                    batch_size=4,
                )
            )
            for rerank in settings
        ]

    def test_answers_are_those_of_the_classifier(
        self, classifiers: list[HybridClassifier], tmp_path: Path
    ) -> None:
        photos = [tmp_path / "query" / item.path for item in read_corpus(tmp_path / "query").items]
        photos.insert(3, tmp_path / "missing.png")
        answering = EmbeddingCache()
        for classifier in classifiers:
            expected = list(classifier.classify_files(photos))
            found = list(answering(classifier, photos))
            assert isinstance(found[3], SkippedFile)
            for one, other in zip(found, expected, strict=True):
                if not isinstance(one, SkippedFile):
                    assert set(one.timings) == set(other.timings)
                    one, other = ({**a.to_dict(), "timings": None} for a in (one, other))
                assert one == other
        assert sum(answer.used_reranker for answer in found if not isinstance(answer, SkippedFile)) > 0

    def test_a_photo_is_opened_again_only_to_show_it(
        self, classifiers: list[HybridClassifier], tmp_path: Path
    ) -> None:
        photos = sorted((tmp_path / "query").rglob("*.png"))
        answering = EmbeddingCache()
        first = [answer.label for answer in answering(classifiers[0], photos)]
        shutil.rmtree(tmp_path / "query")
        assert [answer.label for answer in answering(classifiers[0], photos)] == first
        assert [answer.code for answer in answering(classifiers[1], photos)] == ["not_found"] * len(photos)


def test_files_are_copied_where_the_disk_cannot_link(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/c").write_bytes(b"x")

    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    link_files(tmp_path / "a", tmp_path / "copy", refuse)
    link_files(tmp_path / "a", tmp_path / "link")
    assert (tmp_path / "copy/b/c").read_bytes() == b"x"
    inodes = [(tmp_path / name / "b/c").stat().st_ino for name in ("a", "copy", "link")]
    assert inodes[0] == inodes[2] != inodes[1]


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"sedes": [1]}, "unknown key; did you mean 'seeds'?"),
            (
                {"split": {"index": 0.6, "evaluation": 0.4}},
                "split.evaluation: unknown key; did you mean 'evaluate'?",
            ),
            ({"split": {"index": 0.6, "evaluate": 0.6}}, "must sum to 1"),
            ({"split": {"index": 1.0, "evaluate": 0.4}}, "split.index"),
            ({"split": None}, "either `corpus` and `split`, or `index` and `evaluate`"),
            ({"index": "corpus"}, "either `corpus` and `split`, or `index` and `evaluate`"),
            ({"corpus": None, "split": None, "index": "corpus"}, "both `index` and `evaluate`"),
            ({"grid": {}}, "grid: "),
            ({"grid": None}, "grid: "),
            ({"grid": {"calibrate.head": []}}, "grid.calibrate.head"),
            ({"grid": {"calibrate.head": "knn"}}, "grid.calibrate.head"),
            ({"grid": {"calibrate.head": ["knn", "knn"]}}, 'calibrate.head: "knn" is given twice'),
            ({"grid": {"retrieval.index_path": ["a"]}}, "each run has its own retrieval.index_path"),
            ({"grid": {"retrieval.topk": [5]}}, "retrieval.topk: unknown key; did you mean 'top_k'?"),
            ({"grid": {"retrieval.top_k": [0]}}, "grid: retrieval.top_k"),
            ({"grid": {"encoder": [{"family": "fakes"}]}}, "did you mean 'fake'?"),
            ({"grid": {"calibrate.heads": ["knn"]}}, "calibrate.heads: unknown key; did you mean 'head'?"),
            ({"grid": {"calibrate.keep_known": [1.5]}}, "keep_known must lie between 0 and 1"),
            ({"grid": {"calibrate.head": ["knn"]}, "calibrate": False}, "which has a value already"),
            ({"calibrate": {"keep_know": 0.9}}, "unknown key; did you mean 'keep_known'?"),
            ({"calibrate": {"keep_known": 1.5}}, "keep_known must lie between 0 and 1"),
            (
                {"calibrate": {"costs": {"reject_knwon": 1}}},
                "calibrate.costs.reject_knwon: unknown key; did you mean 'reject_known'?",
            ),
            ({"calibrate": {"every_label": "yes"}}, "calibrate.every_label: "),
            ({"calibrate": True}, "must be a mapping of target options, or false"),
            ({"seeds": []}, "seeds"),
            ({"seeds": ["one"]}, "seeds.0"),
            ({"seeds": [1.5]}, "seeds.0"),
            ({"seeds": [True]}, "seeds.0"),
            ({"seeds": [-1]}, "seeds.0"),
            ({"seeds": [1, 1]}, "seeds: 1 is given twice"),
            ({"resamples": 0}, "resamples"),
            ({"hold_out_labels": 3}, "hold_out_labels is 3, the indexed photos have 3 labels"),
            ({"base": "missing.yaml"}, "missing.yaml: cannot be read"),
        ],
    )
    def test_experiments(self, tmp_path: Path, changes: dict[str, Any], says: str) -> None:
        path = write_experiment(tmp_path, **changes)
        with pytest.raises(ConfigError) as error:
            carried_out(path, tmp_path / "out")
        assert says in str(error.value)
        assert "\n" not in str(error.value)

    def test_settings_that_list_their_steps(self, tmp_path: Path) -> None:
        path = write_experiment(tmp_path)
        steps = [{"embed": {"encoder": {"family": "fake"}}}, {"retrieve": {"index": "none"}}, {"vote": {}}]
        (tmp_path / "base.yaml").write_text(yaml.safe_dump({"pipeline": steps}), encoding="utf-8")
        with pytest.raises(ConfigError, match="list their steps under `pipeline`"):
            plans(Experiment.from_yaml(path), tmp_path)

    def test_missing_photos(self, tmp_path: Path) -> None:
        path = write_experiment(tmp_path, corpus="nowhere", needs="make photos")
        with pytest.raises(
            CorpusError, match=r"corpus: .*nowhere: there is no such .* run `make photos` first"
        ):
            carried_out(path, tmp_path / "out")
        path = write_experiment(tmp_path, near="nowhere")
        with pytest.raises(CorpusError, match=r"near: .*nowhere: .* check the path"):
            carried_out(path, tmp_path / "out")

    def test_outputs(self, tmp_path: Path) -> None:
        path = write_experiment(tmp_path)
        with pytest.raises(ConfigError, match="base.yaml is a file"):
            carried_out(path, tmp_path / "base.yaml")
        with pytest.raises(ConfigError, match="holds something else than an experiment"):
            carried_out(path, tmp_path / "corpus")
        assert not (tmp_path / "corpus/.lock").exists()


def test_paths_of_the_grid_start_at_the_experiment(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    path = write_experiment(tmp_path, grid={"encoder.cache_dir": ["models"]}, seeds=[0])
    [plan] = plans(Experiment.from_yaml(path), tmp_path / "sub")
    assert plan.config.encoder.cache_dir == tmp_path / "sub/models"
    assert plan.config.retrieval.top_k == BASE["retrieval"]["top_k"]


def test_the_grid_reaches_into_the_target(tmp_path: Path) -> None:
    costs = {"reject_known": 1, "accept_unknown": 5}
    grid = {f"calibrate.costs.{key}": [value] for key, value in costs.items()}
    grid |= {"calibrate.costs.unknown_share": [0.1, 0.5], "calibrate.head": ["knn", None]}
    path = write_experiment(tmp_path, grid=grid, seeds=[0], calibrate={"keep_known": 0.9, "head": "gda"})
    found = [plan.calibrate for plan in plans(Experiment.from_yaml(path), tmp_path)]
    asked = [(0.1, "knn"), (0.1, None), (0.5, "knn"), (0.5, None)]
    assert found == [
        CalibrateSettings(keep_known=0.9, costs=Costs(1, 5, share), head=head) for share, head in asked
    ]
    (tmp_path / "again.yaml").write_text(Experiment.from_yaml(path).to_yaml(), encoding="utf-8")
    assert Experiment.from_yaml(tmp_path / "again.yaml") == Experiment.from_yaml(path)


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_experiments_are_sound_and_say_what_they_need(path: Path, tmp_path: Path) -> None:
    shutil.copytree(EXPERIMENTS.parent, tmp_path / "config")
    path = tmp_path / "config/experiments" / path.name
    experiment = Experiment.from_yaml(path)
    assert len(plans(experiment, path.parent)) >= 6
    with pytest.raises(CorpusError, match="run `lmm-classifier demo` first"):
        run_experiment(experiment, path.parent, tmp_path / "out")
