"""A reranker is asked where it helps and left alone where it does not, on the scans of the demo."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fitted import GATES, write_fitted
from lmm_classifier import HybridClassifier, PipelineConfig, registry
from lmm_classifier.api.build_index import build_index
from lmm_classifier.calibration.calibrate import calibrate
from lmm_classifier.calibration.rerank_trial import TrialCase, answer_of, fit_fusion, worth_asking
from lmm_classifier.calibration.targets import CalibrationTarget
from lmm_classifier.checkpoints.digits import write_digits
from lmm_classifier.decision.fusion import Fusion, fused_logits
from lmm_classifier.errors import ConfigError, CorpusError
from lmm_classifier.index.calibration import RerankTrial, read_calibration
from lmm_classifier.models.base import Question
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.steps.rerank import Rerank
from lmm_classifier.types import Choice, FloatArray, Sample, Scores, Verdict
from synthetic import COLOURS, picture, write_corpus

SIGLIP = ModelSpec("siglip", "shipped:siglip-digits", dtype="float32")
LOOK = CalibrationTarget(always_look=0.25)


def digits(index: Path) -> HybridClassifier:
    rerank = {"model_name": "shipped:qwen2-vl-digits", "dtype": "float32", "max_candidates": 3}
    return HybridClassifier(
        PipelineConfig(
            encoder=SIGLIP,
            retrieval={"index_path": index, "top_k": 10},
            rerank={**rerank, "max_batch_size": 64},
            batch_size=64,
        )
    )


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder)
    return folder


def test_a_reranker_that_helps_is_weighed_and_asked(scans: Path, tmp_path: Path) -> None:
    build_index(scans / "index", tmp_path / "index", encoder=SIGLIP)
    fitted, _ = calibrate(digits(tmp_path / "index"), LOOK, score="max_similarity", photos=scans / "index")
    trial = fitted.rerank
    assert trial is not None
    assert trial.helps
    assert trial.corrections >= 10
    assert trial.regressions <= trial.corrections / 3
    photos = sorted((scans / "query").glob("*/*.png"))[::4]
    answers = digits(tmp_path / "index").classify_batch(photos)
    asked = [answer for answer in answers if answer.used_reranker]
    assert asked
    assert all("model and retrieval give" in answer.reason for answer in asked)


def test_a_reranker_that_hurts_is_switched_off(scans: Path, tmp_path: Path) -> None:
    """Every label carries its neighbour's name: a model that reads digits is always wrong about them."""
    names = sorted(path.name for path in (scans / "index").iterdir())
    for name, other in zip(names, [*names[1:], names[0]], strict=True):
        shutil.copytree(scans / "index" / name, tmp_path / "corpus" / other)
    build_index(tmp_path / "corpus", tmp_path / "index", encoder=SIGLIP)
    hard = replace(LOOK, coverage=0.9999)  # what is asked is which label, too
    fitted, _ = calibrate(
        digits(tmp_path / "index"), hard, score="max_similarity", photos=tmp_path / "corpus"
    )
    trial = fitted.rerank
    assert trial is not None
    photos = sorted((scans / "query").glob("*/*.png"))[::8]
    answers = digits(tmp_path / "index").classify_batch(photos)
    assert trial.cases >= 20, trial
    assert not trial.helps, trial
    assert not any(answer.used_reranker for answer in answers)
    uncertain = [answer for answer in answers if answer.status == "uncertain"]
    assert uncertain
    assert all(answer.rerank_skipped is not None for answer in uncertain)


def test_a_reranker_that_guesses_is_switched_off(scans: Path, tmp_path: Path) -> None:
    """The demo's model has never seen two pictures at once; what it says of pairs is next to nothing."""
    build_index(scans / "index", tmp_path / "index", encoder=SIGLIP)
    rerank = {"model_name": "shipped:qwen2-vl-digits", "dtype": "float32", "mode": "pairwise", "exemplars": 1}
    rerank |= {"corpus_root": scans / "index", "max_batch_size": 64}
    guessing = HybridClassifier(
        PipelineConfig(encoder=SIGLIP, retrieval={"index_path": tmp_path / "index"}, rerank=rerank)
    )
    fitted, _ = calibrate(guessing, LOOK, score="mahalanobis", photos=scans / "index")
    trial = fitted.rerank
    assert trial is not None
    assert trial.corrections > 0
    assert trial.helps is False
    again = read_calibration(tmp_path / "index")
    assert again is not None
    assert again.calibration.rerank == trial


def test_trying_needs_the_photos_and_a_reranker(scans: Path, tmp_path: Path) -> None:
    build_index(scans / "index", tmp_path / "index", encoder=SIGLIP)
    with pytest.raises(CorpusError, match="give the folder the index was built from"):
        calibrate(digits(tmp_path / "index"), LOOK, score="max_similarity", photos=tmp_path)
    without = PipelineConfig(
        encoder=SIGLIP, retrieval={"index_path": tmp_path / "index"}, rerank={"enabled": False}
    )
    with pytest.raises(ConfigError, match="enable `rerank`"):
        calibrate(HybridClassifier(without), photos=scans / "index")


def case(truth: str, retrieval: float, model: float) -> TrialCase:
    """Labels a and b; each opinion as its probability of a."""
    choice = Choice(("a", "b"), np.log(np.asarray([model, 1 - model], np.float32)))
    return TrialCase(truth, "a" if retrieval > 0.5 else "b", choice, np.asarray([retrieval, 1 - retrieval]))


class TestFusionFit:
    def test_without_cases_enough_each_opinion_counts_by_how_decided_it_is(self) -> None:
        """Of two options: one bit says all, half and half nothing."""
        scarce = fit_fusion([case("a", 0.6, 0.2)] * 14)
        assert scarce == Fusion(scarce=True)
        undecided, sure = (
            np.asarray([0.5, 0.5]),
            Choice(("a", "b"), np.log(np.asarray([0.1, 0.9], np.float32))),
        )
        logits = fused_logits(scarce, sure, undecided)
        assert logits[1] - logits[0] == pytest.approx(2 * np.log(9), abs=1e-3)  # retrieval's weight is 0
        logits = fused_logits(scarce, sure, np.asarray([0.9, 0.1]))  # as decided, the other way
        assert logits[1] - logits[0] == pytest.approx(0, abs=1e-6)

    def test_an_opinion_that_is_noise_loses_its_weight(self) -> None:
        rng = np.random.default_rng(0)
        cases = [
            case("a" if rng.random() < sure else "b", sure, rng.uniform(0.05, 0.95))
            for sure in rng.choice([0.9, 0.8, 0.2, 0.1], 1000)
        ]
        fitted = fit_fusion(cases)
        assert fitted.model < 0.2
        assert fitted.retrieval == pytest.approx(1, abs=0.2)  # its probabilities are true
        assert np.mean([answer_of(fitted, c) == c.best for c in cases]) > 0.9

    def test_few_cases_move_it_less_than_many(self) -> None:
        pair = [case("a", 0.6, 0.8), case("b", 0.4, 0.2)]  # both right, and neither as sure as it could be
        few, many = fit_fusion(pair * 8), fit_fusion(pair * 80)
        assert 1 < few.retrieval < many.retrieval
        assert 1 < few.model < many.model < 10


class TestWhoIsWorthAsking:
    def test_those_that_bring_most_of_the_gain(self) -> None:
        """By hand: of four, the two most doubtful are corrected; the third is asked about in vain."""
        cases = [case("b", sure, 0.1) for sure in (0.6, 0.55)] + [case("a", sure, 0.9) for sure in (0.8, 0.9)]
        below, curve = worth_asking(cases, [0, 1], [])
        assert below == pytest.approx(0.8)
        assert curve == ((0, 0.5), (0.25, 0.75), (0.5, 1.0), (0.75, 1.0), (1.0, 1.0))

    def test_those_as_doubtful_as_each_other_go_together(self) -> None:
        """Else a cut between them would ask about none of them at run time, where it is strict."""
        cases = [case("b", 0.6, 0.1)] * 30 + [case("a", 0.6, 0.9)] * 30 + [case("a", 0.9, 0.9)]
        below, curve = worth_asking(cases, range(30), [])
        assert below == pytest.approx(0.9)
        assert [share for share, _ in curve] == pytest.approx([0, 60 / 61, 1])

    def test_all_where_the_last_of_them_gains(self) -> None:
        cases = [case("a", 0.6, 0.9), case("b", 0.9, 0.1)]
        assert worth_asking(cases, [1], []) == (1.0, ((0, 0.5), (0.5, 0.5), (1.0, 1.0)))
        assert worth_asking([], [], []) == (1.0, ())

    def test_sure_regions_are_spared_and_told_why(self, slow: None) -> None:
        step = Rerank(model=ModelSpec("slow"), self_test=False)
        [asked_about] = step.requests(uncertain(1)[0])
        assert asked_about.certainty == pytest.approx(0.6)
        trial = RerankTrial(Fusion(), True, (), 40, 10, 0, step.identity, ask_below=0.55)
        assert step.results([asked_about], trial, 1) == [
            "retrieval is sure enough, 0.600: asking pays below 0.550"
        ]
        [asked] = step.results([asked_about], replace(trial, ask_below=0.65), 1)
        assert isinstance(asked, Choice)


class SlowChooser:
    """Takes .05 s a question, and is for the first option."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec

    def log_likelihoods(self, questions: list[Question], batch_size: int) -> list[FloatArray]:
        time.sleep(0.05 * len(questions))
        return [
            np.log(np.asarray([0.9] + [0.1 / len(q.options)] * (len(q.options) - 1), np.float32))
            for q in questions
        ]


def uncertain(n: int) -> list[Sample]:
    image = Image.new("RGB", (8, 8))
    scores = Scores(("a", "b"), np.asarray([[0.6, 0.4]], np.float32), np.asarray([0.9], np.float32))
    verdict = Verdict("uncertain", "a", 0.6, "open_set", "", route="rerank", candidates=("a", "b"))
    return [replace(Sample.from_image(str(i), image), scores=scores, verdicts=(verdict,)) for i in range(n)]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BUILTINS["chooser"], "slow", registry.Entry(f"{__name__}:SlowChooser"))


@pytest.mark.usefixtures("slow")
class TestTime:
    def test_what_is_left_when_time_is_up_keeps_retrievals_answer(self) -> None:
        step = Rerank(model=ModelSpec("slow"), max_batch_size=4, max_seconds=1.0, self_test=False)
        finished = step.run(uncertain(40))
        verdicts = [sample.verdicts[0] for sample in finished]  # type: ignore[index]
        asked = [v for v in verdicts if v.decided_by == "rerank"]
        left = [v for v in verdicts if v.rerank_skipped]
        assert len(asked) + len(left) == 40
        assert 0 < len(asked) <= 20  # a photo takes .05 s at least
        for verdict in left:
            assert verdict.rerank_skipped == "max_seconds: the 1 s for this batch have passed"
            assert (verdict.label, verdict.status, verdict.degraded) == ("a", "uncertain", None)

    @pytest.mark.timing
    def test_the_time_is_kept_and_made_use_of(self) -> None:
        step = Rerank(model=ModelSpec("slow"), max_batch_size=4, max_seconds=1.0, self_test=False)
        began = time.monotonic()
        finished = step.run(uncertain(40))
        assert time.monotonic() - began <= 1.1
        assert sum(sample.verdicts[0].decided_by == "rerank" for sample in finished) >= 12  # type: ignore[index]

    def test_without_a_limit_all_are_asked(self) -> None:
        finished = Rerank(model=ModelSpec("slow"), max_batch_size=4).run(uncertain(10))
        assert all(sample.verdicts[0].decided_by == "rerank" for sample in finished)  # type: ignore[index]


def test_what_is_for_a_person_is_not_asked() -> None:
    [sample] = uncertain(1)
    review = replace(sample.verdicts[0], route="review")  # type: ignore[index]
    [finished] = Rerank(model=ModelSpec("fake")).run([replace(sample, verdicts=(review,))])
    assert finished.verdicts == (review,)


def test_a_trial_of_another_reranker_is_refused(tmp_path: Path) -> None:
    build_index(write_corpus(tmp_path / "corpus"), tmp_path / "index", encoder=ModelSpec("fake"))
    ours = Rerank(model=ModelSpec("fake"), calibration=tmp_path / "index")
    trial = RerankTrial(Fusion(), True, ("red",), 10, 5, 1, ours.identity)
    write_fitted(tmp_path / "index", rerank=trial, gates=replace(GATES, known=0.0, sure=1.0))
    assert ours.trial() == trial
    with pytest.raises(ConfigError, match="was calibrated with reranker fake"):
        replace(ours, max_candidates=2).trial()
    config = PipelineConfig(
        encoder=ModelSpec("fake"),
        retrieval={"index_path": tmp_path / "index"},
        rerank={"family": "fake", "model_name": ""},
    )
    answers = HybridClassifier(config).classify_batch([picture(c, seed=9) for c in COLOURS.values()])
    skipped = {a.retrieval_label: a.rerank_skipped for a in answers}
    assert skipped["red"] == "it spoils more photos of 'red' than it corrects"
    assert skipped["blue"] is None
