"""Fitting, the held-out fifth, selection, pruning."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score

from collections_service import blobs
from lmm_classifier.collection import publish as publishing
from lmm_classifier.collection.artifact import read_model, read_version
from lmm_classifier.collection.estimators import Linear, parse_estimator, probabilities
from lmm_classifier.collection.fit import best_f1_cut, fit, platt
from lmm_classifier.collection.selection import calibration_error, measure
from lmm_classifier.collection.store import Store
from lmm_classifier.collection.train import TrainOptions, train
from lmm_classifier.collection.training_set import SkippedCollection, is_held_out
from lmm_classifier.errors import CollectionError, ConfigError
from training_sets import trained, training_set

LOGISTIC = parse_estimator("logistic-regression")


class TestHeldOut:
    def test_a_fifth_of_the_ids_is_held_out_by_their_sha256(self) -> None:
        """The function is fixed for ever: a change would let old versions have seen what they compete on."""
        held_out = [i for i in range(40) if is_held_out(str(i))]
        assert held_out == [8, 9, 39]
        first_eight = [int(hashlib.sha256(str(i).encode()).hexdigest()[:8], 16) / 2**32 for i in range(40)]
        assert held_out == [i for i, share in enumerate(first_eight) if share < 0.2]
        assert abs(np.mean([is_held_out(str(i)) for i in range(20_000)]) - 0.2) < 0.01

    def test_no_version_is_ever_trained_on_what_is_held_out(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also not when the collection grows: what is held out of more data was held out of less."""
        small, large = training_set(n=60), training_set(n=90)
        seen: list[np.ndarray] = []
        monkeypatch.setattr(
            "lmm_classifier.collection.train.fit", lambda v, *rest: seen.append(v) or fit(v, *rest)
        )
        trained(tmp_path, small)
        trained(tmp_path, large)
        held_out = {row.tobytes() for row in large.vectors[large.held_out]}
        assert {row.tobytes() for row in small.vectors[small.held_out]} < held_out
        for vectors, data in zip(seen, (small, large), strict=True):
            assert len(vectors) == (~data.held_out).sum()
            assert not held_out & {row.tobytes() for row in vectors}


class TestFit:
    def test_the_coefficients_are_scikit_learns(self) -> None:
        vectors, labels = blobs()
        found = fit(vectors, labels, parse_estimator("logistic-regression:C=0.1"))
        oracle = LogisticRegression(C=0.1, class_weight="balanced", solver="liblinear", random_state=42)
        oracle.fit(vectors.astype(np.float64), labels)
        np.testing.assert_allclose(found.model.scores(vectors), oracle.decision_function(vectors), atol=1e-5)

    def test_probabilities_are_calibrated_as_scikit_learn_does_it(self) -> None:
        scores = np.random.default_rng(0).normal(size=500)
        labels = np.random.default_rng(1).random(500) < 1 / (1 + np.exp(-(2 * scores - 1)))

        class Scores(LogisticRegression):
            def decision_function(self, x):
                return x[:, 0]

        fixed = Scores().fit(scores[:, None], labels)
        from sklearn.frozen import FrozenEstimator

        oracle = CalibratedClassifierCV(FrozenEstimator(fixed), method="sigmoid").fit(scores[:, None], labels)
        slope, offset = platt(scores, labels)
        np.testing.assert_allclose(
            probabilities(scores, slope, offset), oracle.predict_proba(scores[:, None])[:, 1], atol=2e-3
        )
        assert (slope, offset) == pytest.approx((2, -1), abs=0.4)  # what made the labels

    def test_calibration_stays_finite_where_the_scores_separate_the_classes(self) -> None:
        slope, offset = platt(np.asarray([-2.0, -1.0, 1.0, 2.0]), np.asarray([False, False, True, True]))
        found = probabilities(np.asarray([-2.0, 2.0]), slope, offset)
        assert 0.05 < found[0] < 0.5 < found[1] < 0.95

    def test_probabilities_of_huge_scores_do_not_overflow(self) -> None:
        np.testing.assert_array_equal(
            probabilities(np.asarray([-1e300, 1e300]), 1.0, 0.0), [pytest.approx(0), 1]
        )

    @pytest.mark.parametrize("seed", range(20))
    def test_the_threshold_has_the_best_f1_of_all(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        p = random.random(30).round(1)  # with ties
        labels = random.random(30) < p
        labels[0] = True
        cut = best_f1_cut(p, labels)
        every = max(f1_score(labels, p >= t, zero_division=0) for t in np.append(p, 0.0))
        assert f1_score(labels, p >= cut) == pytest.approx(every)

    def test_of_equal_thresholds_the_one_nearest_to_a_half(self) -> None:
        assert best_f1_cut(
            np.asarray([0.9, 0.8, 0.3, 0.1]), np.asarray([True, True, False, False])
        ) == pytest.approx(0.55)

    def test_a_threshold_and_a_band_can_be_chosen(self) -> None:
        vectors, labels = blobs()
        found = fit(vectors, labels, LOGISTIC, threshold=0.3, abstain=0.4)
        assert (found.threshold, found.abstain) == (0.3, (0.0, 0.7))

    def test_a_single_example_is_enough_but_not_for_calibration(self) -> None:
        vectors, labels = blobs(20)
        labels[:] = False
        labels[0] = True
        found = fit(vectors, labels, LOGISTIC)
        assert (found.calibration, found.threshold) == ("none", 0.5)
        assert found.model.scores(vectors).argmax() == 0

    def test_the_same_data_give_the_same_classifier(self) -> None:
        vectors, labels = blobs()
        one, other = (fit(vectors, labels, parse_estimator(name)) for name in ["linear-svc"] * 2)
        assert isinstance(one.model, Linear)
        assert isinstance(other.model, Linear)
        np.testing.assert_array_equal(one.model.weights, other.model.weights)
        assert (one.slope, one.offset, one.threshold) == (other.slope, other.offset, other.threshold)

    def test_unknown_estimators_and_options_are_refused_with_the_nearest_name(self) -> None:
        with pytest.raises(ConfigError, match="did you mean 'logistic-regression'"):
            parse_estimator("logistic-regresion")
        with pytest.raises(ConfigError, match="no option 'tool'; did you mean 'tol'"):
            parse_estimator("linear-svc:tool=1")


class TestMetrics:
    def test_the_figures_are_scikit_learns(self) -> None:
        random = np.random.default_rng(0)
        p = random.random(200)
        labels = random.random(200) < p
        found = measure(p, labels, 0.4)
        assert found is not None
        said = p >= 0.4
        assert found.macro_precision == precision_score(labels, said, average="macro")
        assert found.average_precision == average_precision_score(labels, p)
        assert found.f1 == f1_score(labels, said)
        assert found.recall == recall_score(labels, said)
        assert found.accuracy == np.mean(said == labels)
        assert (found.n, found.positive) == (200, labels.sum())

    def test_the_calibration_error_by_hand(self) -> None:
        p = np.asarray([0.05, 0.05, 0.95, 0.95])
        labels = np.asarray([False, True, True, True])
        assert calibration_error(p, labels) == pytest.approx((2 * 0.45 + 2 * 0.05) / 4)
        assert calibration_error(np.asarray([1.0]), np.asarray([True])) == 0

    def test_an_answer_that_is_never_given_has_no_precision(self) -> None:
        found = measure(np.asarray([0.1, 0.2]), np.asarray([False, True]), 0.5)
        assert found is not None
        assert (found.macro_precision, found.f1) == (0.25, 0)

    def test_one_class_alone_has_no_average_precision_and_nothing_no_figures(self) -> None:
        found = measure(np.asarray([0.1, 0.2]), np.asarray([False, False]), 0.5)
        assert found is not None
        assert found.average_precision is None
        assert measure(np.asarray([]), np.asarray([], bool), 0.5) is None


class TestSelection:
    def test_all_kept_versions_compete_on_the_same_items(self, tmp_path: Path) -> None:
        """A good old version beats a new one that was trained on wrong labels."""
        good = training_set()
        [first] = trained(tmp_path, good)
        wrong = ~good.held_out & (np.random.default_rng(1).random(90) < 0.5)
        [second] = trained(tmp_path, replace(good, labels=good.labels ^ wrong))
        assert second.best.model_file == first.best.model_file
        assert second.best.created < max(c.version.created for c in second.ranking if c.version)
        held_out = good.held_out
        for competitor in second.ranking:
            assert competitor.version is not None
            assert competitor.metrics is not None
            scores = read_model(tmp_path, competitor.version).scores(good.vectors[held_out])
            said = (
                probabilities(scores, competitor.version.slope, competitor.version.offset)
                >= competitor.version.threshold
            )
            assert competitor.metrics.macro_precision == precision_score(
                good.labels[held_out], said, average="macro", zero_division=0
            )
        figures = [c.metrics.macro_precision for c in second.ranking if c.metrics]
        assert figures == sorted(figures, reverse=True)

    def test_of_equal_versions_the_newest_wins_then_the_first_by_name(self, tmp_path: Path) -> None:
        data = training_set(gap=5.0)
        files = [trained(tmp_path, data)[0].best.model_file for _ in range(3)]
        assert len(set(files)) == 3
        assert Store(tmp_path).metadata("7")["model_file"] == files[-1]
        same = replace(read_version(next(tmp_path.glob("*classifier*.json"))), created="2030-01-01")
        for path in tmp_path.glob("*classifier*.json"):
            version = replace(read_version(path), created=same.created)
            path.write_text(json.dumps(version.sealed()))
        [again] = trained(tmp_path, data)
        old = [c.path.name for c in again.ranking if c.version and c.version.created == same.created]
        assert old == sorted(old)

    @pytest.mark.parametrize("metric", ["average_precision", "f1", "accuracy"])
    def test_another_figure_can_decide(self, tmp_path: Path, metric: str) -> None:
        data = training_set(gap=0.3)
        names = ("logistic-regression", "linear-svc", "lda")
        options = TrainOptions(tuple(map(parse_estimator, names)), metric)  # type: ignore[arg-type]
        [result] = trained(tmp_path, data, options=options)
        figures = [getattr(c.metrics, metric) for c in result.ranking]
        assert len(figures) == 3
        assert figures[0] == max(figures)

    @pytest.mark.parametrize("name", ["linear-svc", "lda"])
    def test_every_estimator_comes_back_as_it_was_stored(self, tmp_path: Path, name: str) -> None:
        data = training_set()
        [result] = trained(tmp_path, data, options=TrainOptions((parse_estimator(name),)))
        train_part = ~data.held_out
        fitted = fit(data.vectors[train_part], data.labels[train_part], parse_estimator(name))
        model = read_model(tmp_path, result.best)
        np.testing.assert_allclose(model.scores(data.vectors), fitted.model.scores(data.vectors), atol=1e-9)
        assert result.best.metrics is not None
        assert result.best.metrics.accuracy > 0.85

    def test_ten_versions_are_kept_and_the_winner_always(self, tmp_path: Path) -> None:
        good = training_set()
        [first] = trained(tmp_path, good)
        wrong = replace(good, labels=good.labels ^ (~good.held_out & (np.arange(90) % 2 == 0)))
        for _ in range(12):
            [last] = trained(tmp_path, wrong)
        kept = publishing.versions_of(tmp_path, "7")
        assert len(kept) == 10
        assert last.best.model_file == first.best.model_file
        assert (tmp_path / first.best.model_file).exists()
        assert len(list(tmp_path.glob("*.safetensors"))) == 10

    def test_versions_for_other_vectors_do_not_compete(self, tmp_path: Path) -> None:
        trained(tmp_path, training_set(d=8))
        [result] = trained(tmp_path, training_set(d=5))
        assert [c.reason for c in result.ranking] == ["", "made for other vectors than these"]
        assert result.best.dimensionality == 5

    def test_names_of_files_say_collection_and_utc_time(self, tmp_path: Path) -> None:
        [result] = trained(tmp_path, training_set("7"))
        pattern = r"collection_7_classifier_\d{4}-\d\d-\d\d_\d{6}\.safetensors"
        assert re.fullmatch(pattern, result.best.model_file)

    @pytest.mark.parametrize(
        "name", ["../evil", "a/b", "Rose", "_", "", ".", "x" * 300, "*", "ö", "a_b", "-", "a\\b"]
    )
    def test_whatever_a_collection_is_called_its_files_stay_inside_the_store(
        self, tmp_path: Path, name: str
    ) -> None:
        store = tmp_path / "store"
        trained(store, training_set(name), training_set("rose"))
        assert [p.name for p in tmp_path.iterdir()] == ["store"]
        assert all(p.is_file() for p in store.iterdir())
        assert {name, "rose"} == set(Store(store).snapshot().ids)
        assert len(publishing.versions_of(store, name)) == 1

    def test_best_models_json_has_the_documented_shape_and_more(self, tmp_path: Path) -> None:
        trained(tmp_path, training_set("7"), training_set("8"))
        best = json.loads((tmp_path / "best_models.json").read_text())
        assert set(best) == {"7", "8"}
        entry = best["7"]
        assert (tmp_path / entry["model_file"]).is_file()
        assert (entry["derivative_type"], entry["embedding_type"]) == ("whole_image", "made_up")
        assert (entry["dimensionality"], entry["schema_version"]) == (8, 2)
        assert entry["parts"][0].keys() >= {"embedding_type", "dimensionality", "fingerprint"}
        counts = entry["training"]
        assert counts["positive"] + counts["negative"] + counts["held_out"] == 90
        assert entry["created"].endswith("+00:00")

    def test_entries_of_others_stay_as_they_are(self, tmp_path: Path) -> None:
        old = {"1": "collection_1_classifier_2025-01-01_000000.pkl", "2": {"model_file": 3}, "x": [1]}
        (tmp_path / "best_models.json").write_text(json.dumps(old))
        trained(tmp_path, training_set("7"))
        best = json.loads((tmp_path / "best_models.json").read_text())
        assert {key: best[key] for key in old} == old
        assert "7" in best

    def test_a_damaged_best_models_json_is_not_overwritten(self, tmp_path: Path) -> None:
        (tmp_path / "best_models.json").write_text('{"1": "a')
        report = train([training_set()], tmp_path)
        assert "no valid JSON" in report.skipped[0].reason
        assert (tmp_path / "best_models.json").read_text() == '{"1": "a'

    def test_figures_and_the_whole_comparison_are_stored(self, tmp_path: Path) -> None:
        trained(tmp_path, training_set())
        [result] = trained(tmp_path, training_set())
        metrics = Store(tmp_path).metadata(7)["metrics"]
        assert metrics.keys() >= {"macro_precision", "average_precision", "f1", "calibration_error", "n"}
        comparison = Store(tmp_path).comparison("7")
        assert comparison is not None
        assert [row["version"] for row in comparison["versions"]] == [c.path.stem for c in result.ranking]
        assert comparison["versions"][0]["metrics"] == metrics
        assert comparison["metric"] == "macro_precision"


class TestIsolation:
    def test_a_collection_of_one_class_is_skipped(self, tmp_path: Path) -> None:
        data = training_set()
        report = train(
            [replace(data, labels=np.ones(90, bool)), replace(data, labels=np.zeros(90, bool))], tmp_path
        )
        assert [s.reason for s in report.skipped] == [
            "all 90 items are positive: one class only",
            "all 90 items are negative: one class only",
        ]

    def test_a_class_with_a_single_item_stops_nobody(self, tmp_path: Path) -> None:
        single, other = training_set("1"), training_set("2")
        held_out = single.held_out
        labels = np.zeros(90, bool)
        labels[np.flatnonzero(~held_out)[0]] = True
        lost = np.zeros(90, bool)
        lost[np.flatnonzero(held_out)[0]] = True
        report = train(
            [replace(single, labels=labels), replace(single, collection="3", labels=lost), other], tmp_path
        )
        assert [t.best.collection for t in report.trained] == ["1", "2"]
        assert report.trained[0].warnings == (
            "one class has a single item to learn from: probabilities are not calibrated",
            "the held-out items are not of both classes: the figures say little",
        )
        [skipped] = report.skipped
        assert "outside the held-out fifth all are of one class" in skipped.reason

    def test_a_collection_that_fails_in_any_way_neither_stops_nor_erases_others(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trained(tmp_path, training_set("1"), training_set("2"))
        before = json.loads((tmp_path / "best_models.json").read_text())

        def fails(vectors, labels, *rest):
            if len(labels) and labels.sum() > 25:
                raise ZeroDivisionError("of scikit-learn")
            return fit(vectors, labels, *rest)

        monkeypatch.setattr("lmm_classifier.collection.train.fit", fails)
        many = replace(training_set("2"), labels=np.arange(90) % 2 == 0)
        skipped = SkippedCollection("9", "x", "was skipped before")
        report = train([many, skipped, training_set("3")], tmp_path)
        assert [(s.collection, s.reason) for s in report.skipped] == [
            ("2", "ZeroDivisionError: of scikit-learn"),
            ("9", "was skipped before"),
        ]
        after = json.loads((tmp_path / "best_models.json").read_text())
        assert {key: after[key] for key in before} == before
        assert set(after) == {"1", "2", "3"}

    def test_nothing_is_written_where_nothing_can_be(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        report = train([training_set()], tmp_path / "file")
        assert "cannot write" in report.skipped[0].reason

    def test_a_second_training_waits_and_then_says_so(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from lmm_classifier.collection import store

        monkeypatch.setattr(store, "PATIENCE_S", 0.1)
        with (
            store.changing(tmp_path),
            pytest.raises(CollectionError, match="another training"),
            store.changing(tmp_path),
        ):
            pass
        trained(tmp_path, training_set())  # the lock is gone
