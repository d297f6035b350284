from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lmm_classifier import HybridClassifier, PipelineConfig
from lmm_classifier.corpus.source import read_corpus
from lmm_classifier.decision.policy import Evidence
from lmm_classifier.errors import ConfigError, CorpusError
from lmm_classifier.evaluate.calibrate import Judged, calibrate, fit_confidence, fit_cut
from lmm_classifier.index.calibration import read_calibration
from lmm_classifier.indexing import index_corpus
from lmm_classifier.models.base import ModelSpec
from synthetic import COLOURS, picture, write_corpus

FAKE = ModelSpec("fake")


def judged(*scores: tuple[float, bool], lead: float = 1.0) -> list[Judged]:
    return [Judged(Evidence(0, score, lead, score), right) for score, right in scores]


@pytest.mark.parametrize(("keep", "cut"), [(0.9, 2.0), (0.95, 1.0), (0.5, 6.0), (0.05, 10.0)])
def test_cut_keeps_the_asked_share(keep: float, cut: float) -> None:
    values = [v / 10 for v in range(10, 0, -1)]
    assert fit_cut(values, keep) == pytest.approx(cut / 10)
    assert np.mean(np.asarray(values) >= cut / 10) >= keep


def test_known_rejection_on_fresh_draws_is_what_was_asked() -> None:
    rng = np.random.default_rng(0)
    rejected = [np.mean(rng.beta(8, 2, 2000) < fit_cut(rng.beta(8, 2, 400), 0.95)) for _ in range(50)]
    assert np.mean(rejected) == pytest.approx(0.05, abs=0.005)


def test_confidence_is_the_smallest_cut_that_is_precise_enough() -> None:
    cases = judged((0.9, True), (0.8, True), (0.7, False), (0.6, True), (0.5, True), (0.4, False))
    assert fit_confidence(cases, 0.99, 0.05) == pytest.approx(0.8)
    assert fit_confidence(cases, 0.80, 0.05) == pytest.approx(0.5)  # four of five
    assert fit_confidence(cases, 0.60, 0.05) == pytest.approx(0.4)  # four of six
    assert fit_confidence(judged((0.9, False), (0.8, True)), 0.99, 0.05) == 1.0


def test_confidence_never_splits_a_tie() -> None:
    assert fit_confidence(judged((0.9, True), (0.7, True), (0.7, False)), 0.99, 0.05) == pytest.approx(0.9)


def test_images_without_a_lead_do_not_count() -> None:
    cases = judged((0.9, True), (0.8, True)) + judged((0.85, False), lead=0.01)
    assert fit_confidence(cases, 0.99, 0.05) == pytest.approx(0.8)


def settings(index: Path, **retrieval: object) -> PipelineConfig:
    return PipelineConfig(
        encoder=FAKE, retrieval={"index_path": index, **retrieval}, rerank={"family": "fake"}
    )


@pytest.fixture
def work(tmp_path: Path) -> Path:
    index_corpus(write_corpus(tmp_path / "corpus"), tmp_path / "index", encoder=FAKE)
    for offset, (label, colour) in enumerate(COLOURS.items()):
        (tmp_path / "held_out" / label).mkdir(parents=True)
        for i in range(20):
            picture(colour, seed=5000 + 100 * offset + i).save(tmp_path / "held_out" / label / f"{i}.png")
    return tmp_path


def test_fitted_thresholds_are_stored_and_used_unless_the_settings_say_otherwise(work: Path) -> None:
    (work / "held_out/red/bad.jpg").write_bytes(b"no photo")
    assert HybridClassifier(settings(work / "index")).thresholds.source == "default"  # type: ignore[union-attr]
    fitted, skipped = calibrate(HybridClassifier(settings(work / "index")), read_corpus(work / "held_out"))
    assert [s.code for s in skipped] == ["unsupported_format"]
    assert fitted.n_images == 60
    assert read_calibration(work / "index") == fitted
    used = HybridClassifier(settings(work / "index")).thresholds
    assert used is not None
    assert (used.confidence, used.open_set) == (fitted.confidence_threshold, fitted.open_set_threshold)
    assert used.source == "calibrated"
    own = HybridClassifier(
        settings(work / "index", open_set_threshold=0.2, confidence_threshold=0.3)
    ).thresholds
    assert own is not None
    assert (own.confidence, own.open_set, own.source) == (0.3, 0.2, "configured")
    images = [work / "held_out/red" / f"{i}.png" for i in range(20)]
    assert [a.status for a in HybridClassifier(settings(work / "index")).classify_batch(images)].count(
        "unknown"
    ) <= 3


def test_thresholds_are_fitted_with_the_text_prior(work: Path) -> None:
    held_out = read_corpus(work / "held_out")
    without, _ = calibrate(HybridClassifier(settings(work / "index")), held_out)
    assert (without.text_weight, without.text_temperature) == (0.0, None)
    by_name = HybridClassifier(settings(work / "index", text_weight=1.0))
    fitted, _ = calibrate(by_name, held_out)
    assert (fitted.text_weight, fitted.text_temperature) == (1.0, 0.01)
    # Every label has images, so closeness is as before; but the names are surer than the ten neighbours.
    assert fitted.open_set_threshold == pytest.approx(without.open_set_threshold, abs=1e-5)
    assert fitted.confidence_threshold > without.confidence_threshold
    by_name.check_index()
    with pytest.raises(ConfigError, match="was calibrated with text weight 1.0"):
        HybridClassifier(settings(work / "index")).check_index()


def test_wrong_targets_and_too_few_images_are_refused(work: Path) -> None:
    classifier = HybridClassifier(settings(work / "index"))
    with pytest.raises(ConfigError, match="keep_known must lie between 0 and 1"):
        calibrate(classifier, read_corpus(work / "held_out"), keep_known=1.0)
    with pytest.raises(CorpusError, match="at least 20"):
        calibrate(classifier, read_corpus(write_corpus(work / "few", per_label=2, seed=9000)))
    with pytest.raises(CorpusError, match=r"blue/0\.png is in the index too"):
        calibrate(classifier, read_corpus(work / "corpus"))
    (work / "held_out/red").rename(work / "held_out/mauve")
    with pytest.raises(CorpusError, match="the index has no label 'mauve'"):
        calibrate(classifier, read_corpus(work / "held_out"))
    index_corpus(work / "corpus", work / "i.npz", encoder=FAKE)
    with pytest.raises(ConfigError, match="index folder"):
        calibrate(HybridClassifier(settings(work / "i.npz")), read_corpus(work / "held_out"))
    assert read_calibration(work / "index") is None
