"""Drift from p-values: how often it cries wolf, and what it sees."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import beta, kstest

from fitted import write_fitted
from lmm_classifier import HybridClassifier, PipelineConfig
from lmm_classifier.api.build_index import build_index
from lmm_classifier.decision.conformal import p_values
from lmm_classifier.errors import ConfigError
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.monitoring.drift import ALARM, Drift, drift
from lmm_classifier.monitoring.p_value_log import calibration_of, name_of, open_log, read_log
from synthetic import write_corpus

SEEDS = 200


def scores(generator: np.random.Generator, n: int, shift: float = 0.0, decimals: int = 12) -> np.ndarray:
    drawn = 1 / (1 + np.exp(-generator.normal(1 + shift, 1, n)))
    return drawn.round(decimals).astype(np.float32).astype(np.float64)


def found_in(
    seed: int, photos: int = 400, calibrated: int = 200, shift: float = 0.0, decimals: int = 12
) -> Drift:
    generator = np.random.default_rng(seed)
    known = np.sort(scores(generator, calibrated, 0.0, decimals))
    logged = p_values(known, scores(generator, photos, shift, decimals))
    return drift(logged.tolist(), known, 0.95)


class TestFalseAlarms:
    @pytest.mark.parametrize(("photos", "calibrated"), [(100, 1000), (400, 200), (5000, 200)])
    def test_are_as_rare_as_promised(self, photos: int, calibrated: int) -> None:
        alarms = [found_in(seed, photos, calibrated) for seed in range(SEEDS)]
        # two tests at ALARM each; of 200 trials at 2 % more than 9 occur once in 50
        assert sum(one.recalibrate for one in alarms) <= 9
        assert np.mean([one.whole.p_value < 0.1 for one in alarms]) == pytest.approx(0.1, abs=0.06)

    def test_a_plain_test_of_uniformity_would_cry_wolf(self) -> None:
        generator = np.random.default_rng(0)
        alarms = 0
        for _ in range(SEEDS):
            known = np.sort(scores(generator, 200))
            alarms += kstest(p_values(known, scores(generator, 5000)), "uniform").pvalue < ALARM
        assert alarms > SEEDS / 2

    def test_of_uniform_p_values(self) -> None:
        generator = np.random.default_rng(1)
        known = np.linspace(0, 1, 999)
        uniform = generator.integers(1, 1001, (SEEDS, 300)) / 1000
        assert sum(drift(row.tolist(), known, 0.95).recalibrate for row in uniform) <= 9

    @pytest.mark.parametrize("decimals", [1, 2])
    def test_are_no_more_where_scores_tie(self, decimals: int) -> None:
        alarms = [found_in(seed, 400, 200, decimals=decimals).recalibrate for seed in range(SEEDS)]
        assert sum(alarms) <= 9

    def test_scores_that_only_differ_in_float64_are_ties_in_the_log(self) -> None:
        """A novelty score that saturates: calibrated as float64, logged as float32."""
        known = np.sort(1 - np.random.default_rng(0).uniform(0, 1e-9, 300))
        logged = p_values(known, known.astype(np.float32).astype(np.float64))
        assert set(logged) == {1.0}
        assert not drift(logged.tolist(), known, 0.95).recalibrate


class TestAlarms:
    @pytest.mark.parametrize(("shift", "direction"), [(-0.6, "smaller"), (0.6, "larger")])
    def test_of_photos_that_look_otherwise(self, shift: float, direction: str) -> None:
        found = [found_in(seed, shift=shift) for seed in range(20)]
        assert sum(one.recalibrate for one in found) >= 19
        assert {one.whole.direction for one in found} == {direction}
        said = "look less known" if direction == "smaller" else "look more known"
        assert said in found[0].advice
        assert "calibrate again" in found[0].advice

    def test_the_latest_photos_are_tested_by_themselves(self) -> None:
        generator = np.random.default_rng(3)
        known = np.sort(scores(generator, 2000))
        fine, drifted = scores(generator, 9900), scores(generator, 100, -1)
        logged = p_values(known, np.concatenate([fine, drifted])).tolist()
        found = drift(logged, known, 0.95, window=100)
        assert (found.whole.alarm, found.latest.alarm, found.latest.photos) == (False, True, 100)
        assert found.advice.startswith("the last 100 photos look less known")
        assert not drift(logged[:9900], known, 0.95, window=100).recalibrate

    def test_few_photos_are_no_ground_for_one(self) -> None:
        found = drift([1 / 201] * 19, np.linspace(0, 1, 200), 0.95)
        assert (found.recalibrate, found.whole.p_value < ALARM) == (False, True)
        assert found.advice == "too early to tell: 19 photos, 20 are needed"


def test_share_below_the_cut_with_its_interval() -> None:
    known = np.linspace(0, 1, 99)
    found = drift([0.05] * 3 + [0.06] * 3 + [0.5] * 54, known, 0.95)
    assert (found.asked, found.rejected) == (pytest.approx(0.05), 3 / 60)
    assert (found.low, found.high) == pytest.approx((beta.ppf(0.025, 3, 58), beta.ppf(0.975, 4, 57)))


def test_p_values_of_other_scores_are_refused() -> None:
    with pytest.raises(ConfigError, match="no multiple of 1/100"):
        drift([0.5, 0.123], np.linspace(0, 1, 99), 0.95)


class TestLog:
    @pytest.fixture
    def classifier(self, tmp_path: Path) -> HybridClassifier:
        write_corpus(tmp_path / "corpus", per_label=12)
        build_index(tmp_path / "corpus", tmp_path / "index", encoder=ModelSpec("fake"))
        write_fitted(tmp_path / "index")
        settings = {"encoder": ModelSpec("fake"), "rerank": {"enabled": False}}
        return HybridClassifier(PipelineConfig(retrieval={"index_path": tmp_path / "index"}, **settings))

    def test_a_line_per_photo_appended(self, classifier: HybridClassifier, tmp_path: Path) -> None:
        photos = sorted((tmp_path / "corpus").rglob("*.png"))[:3]
        log = tmp_path / "new/folder/log.jsonl"
        answers = list(classifier.classify_files(photos))
        for _ in range(2):
            with open_log(log, classifier) as opened:
                for answer in answers:
                    opened.note(answer)
                    assert log.read_bytes().endswith(b"}\n")  # there at once, whatever happens next
        lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        assert [line["source"] for line in lines] == [str(photo) for photo in photos] * 2
        assert list(lines[0]) == ["time", "source", "p_value", "label", "route", "calibration"]
        assert read_log(log, lines[0]["calibration"]).p_values == tuple(a.p_value for a in answers) * 2

    def test_cut_off_lines_are_left_out_and_spoil_no_other(
        self, classifier: HybridClassifier, tmp_path: Path
    ) -> None:
        log = tmp_path / "log.jsonl"
        [answer] = classifier.classify_files([tmp_path / "corpus/red/0.png"])
        name = name_of(calibration_of(classifier))
        for _ in range(2):
            with open_log(log, classifier) as opened:
                opened.note(answer)
            log.write_bytes(log.read_bytes() + b'{"time": "2026-0')
        assert read_log(log, name).cut_off == (2, 4)
        assert len(read_log(log, name).p_values) == 2

    def test_lines_of_another_calibration_are_left_out(self, tmp_path: Path) -> None:
        log = tmp_path / "log.jsonl"
        lines = [{"p_value": 0.5, "calibration": name} for name in ("a", "b", "a")]
        log.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
        assert read_log(log, "a").others == 1
        with pytest.raises(
            ConfigError, match=r"no p-value of the calibration in force \(c\), but 3 lines of other"
        ):
            read_log(log, "c")

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("", "but no line that can be read"),
            ("not json\n", "but no line that can be read"),
            ("[1]\n", "log.jsonl:1: not a line of a p-value log"),
            ('{"label": "x"}\n', "`p_value` must be a number in"),
            ('{"p_value": 0, "calibration": "a"}\n', "`p_value` must be a number in"),
            ('{"p_value": NaN, "calibration": "a"}\n', "`p_value` must be a number in"),
            ('{"p_value": true, "calibration": "a"}\n', "`p_value` must be a number in"),
            ('{"p_value": 1.5, "calibration": "a"}\n', "`p_value` must be a number in"),
        ],
    )
    def test_what_is_no_log(self, tmp_path: Path, text: str, says: str) -> None:
        (tmp_path / "log.jsonl").write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=says.replace("`", ".")):
            read_log(tmp_path / "log.jsonl", "a")

    def test_without_a_calibration_there_is_none(self, classifier: HybridClassifier, tmp_path: Path) -> None:
        (tmp_path / "index/calibration.json").unlink()
        with pytest.raises(
            ConfigError, match="p-values need a calibrated index: run `lmm-classifier calibrate`"
        ):
            calibration_of(classifier)
        with (
            pytest.raises(ConfigError, match="lmm-classifier calibrate"),
            open_log(tmp_path / "x", classifier),
        ):
            pass
        assert not (tmp_path / "x").exists()
