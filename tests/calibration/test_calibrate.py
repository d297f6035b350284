from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL.PngImagePlugin import PngInfo

from lmm_classifier import HybridClassifier, PipelineConfig
from lmm_classifier.api.build_index import build_index
from lmm_classifier.calibration.calibrate import calibrate
from lmm_classifier.calibration.targets import CalibrationSample, CalibrationTarget, Costs, fit_gates
from lmm_classifier.corpus.source import read_corpus
from lmm_classifier.decision.gates import Gates
from lmm_classifier.errors import ConfigError, CorpusError
from lmm_classifier.evaluation.evaluate import evaluate
from lmm_classifier.index.build import BuildOptions
from lmm_classifier.index.calibration import read_calibration
from lmm_classifier.index.npz import write_npz
from lmm_classifier.index.records import Record, Records
from lmm_classifier.index.update import import_npz
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.types import EncoderContract
from synthetic import COLOURS, picture, write_corpus

FAKE = ModelSpec("fake")
LABELS = ("a", "b")


def seen(known: list[float], unknown: list[float] = (), best: list[int] | None = None) -> CalibrationSample:  # type: ignore[assignment]
    n = len(known)
    return CalibrationSample(
        np.asarray(known),
        np.asarray(best if best is not None else [0] * n),
        np.linspace(0.1, 1, n),
        np.asarray(unknown),
    )


class TestCuts:
    def test_keep_known(self) -> None:
        gates = fit_gates(seen([v / 20 for v in range(1, 20)]), CalibrationTarget(keep_known=0.9), LABELS)
        assert (gates.known, gates.sure) == (pytest.approx(0.1), pytest.approx(0.1))
        assert fit_gates(seen([0.5] * 5), CalibrationTarget(), LABELS).known == 0  # too few to reject any

    def test_costs_are_least_at_the_cut(self) -> None:
        data = seen([0.5, 0.6, 0.7, 0.8], [0.1, 0.2, 0.3, 0.65])
        # rejecting a known costs 1, accepting an unknown 5, half of each: .8 alone is worth three knowns
        cheap = CalibrationTarget(costs=Costs(1, 5, 0.5))
        assert fit_gates(data, cheap, LABELS).known == pytest.approx(0.7)
        dear = CalibrationTarget(costs=Costs(5, 1, 0.5))
        assert 0.3 < fit_gates(data, dear, LABELS).known <= 0.5
        with pytest.raises(ConfigError, match="an index of one label"):
            fit_gates(seen([0.5] * 30), cheap, LABELS)

    def test_a_label_may_have_a_target_of_its_own(self) -> None:
        known = [*(v / 20 for v in range(1, 20)), *(v / 40 for v in range(1, 20))]
        data = seen(known, best=[0] * 19 + [1] * 19)
        gates = fit_gates(data, CalibrationTarget(keep_known=0.9, per_label={"b": 0.8}), LABELS)
        assert gates.per_label == {"b": pytest.approx(4 / 40)}
        each = fit_gates(data, CalibrationTarget(keep_known=0.9, every_label=True), LABELS)
        assert each.per_label == {"a": pytest.approx(2 / 20), "b": pytest.approx(2 / 40)}
        with pytest.raises(ConfigError, match="19 images of 'b' are too few to keep 99.0%.*at least 99"):
            fit_gates(data, CalibrationTarget(per_label={"b": 0.99}), LABELS)
        with pytest.raises(ConfigError, match="no label 'c'"):
            fit_gates(data, CalibrationTarget(per_label={"c": 0.9}), LABELS)

    def test_unknowns_get_a_second_look_as_far_as_knowns_can_bear_it(self) -> None:
        known = [v / 100 for v in range(1, 101)]
        unknown = [v / 200 for v in range(1, 101)]  # nine in ten are below .455
        gates = fit_gates(seen(known, unknown), CalibrationTarget(catch_unknown=0.9, second_look=0.6), LABELS)
        assert gates.sure == pytest.approx(0.455, abs=0.006)
        bounded = fit_gates(
            seen(known, unknown), CalibrationTarget(catch_unknown=0.9, second_look=0.2), LABELS
        )
        assert bounded.sure == pytest.approx(0.2, abs=0.02)
        always = fit_gates(seen(known, unknown), CalibrationTarget(second_look=0.01, always_look=0.5), LABELS)
        assert always.sure == pytest.approx(0.5, abs=0.02)

    @pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5, float("nan")])
    @pytest.mark.parametrize("name", ["keep_known", "coverage", "catch_unknown", "second_look"])
    def test_targets_outside_0_and_1_are_refused(self, name: str, share: float) -> None:
        with pytest.raises(ConfigError, match=f"{name} must lie between 0 and 1"):
            CalibrationTarget(**{name: share})

    def test_other_targets_are_checked_too(self) -> None:
        with pytest.raises(ConfigError, match="keep_known of 'a'"):
            CalibrationTarget(per_label={"a": 1.0})
        with pytest.raises(ConfigError, match="costs must be above 0"):
            CalibrationTarget(costs=Costs(0, 1, 0.5))
        with pytest.raises(ConfigError, match="unknown_share"):
            CalibrationTarget(costs=Costs(1, 1, 0))


def settings(index: Path, **retrieval: object) -> PipelineConfig:
    return PipelineConfig(
        encoder=FAKE, retrieval={"index_path": index, **retrieval}, rerank={"family": "fake"}
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of 3 x 20 pictures, and 3 x 20 others."""
    folder = tmp_path_factory.mktemp("calibrate")
    build_index(write_corpus(folder / "corpus", per_label=20), folder / "index", encoder=FAKE)
    for offset, (label, colour) in enumerate(COLOURS.items()):
        (folder / "held_out" / label).mkdir(parents=True)
        for i in range(20):
            picture(colour, seed=5000 + 100 * offset + i).save(folder / "held_out" / label / f"{i}.png")
    return folder


@pytest.fixture
def work(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "work"))


def test_what_is_fitted_is_stored_and_used_unless_the_settings_say_otherwise(work: Path) -> None:
    assert HybridClassifier(settings(work / "index")).thresholds.source == "default"  # type: ignore[union-attr]
    fitted, _ = calibrate(HybridClassifier(settings(work / "index")))
    stored = read_calibration(work / "index")
    assert stored is not None
    assert stored.calibration == fitted
    assert (fitted.n_images, fitted.n_held_out, stored.held_out) == (60, 0, frozenset())
    used = HybridClassifier(settings(work / "index"))
    assert isinstance(used.thresholds, Gates)
    assert used.thresholds.known == fitted.gates.known
    images = [work / "held_out/red" / f"{i}.png" for i in range(20)]
    answers = used.classify_batch(images)
    assert [a.label for a in answers].count("red") >= 17
    for answer in answers:
        assert sum(c.score for c in answer.candidates) == pytest.approx(1, abs=1e-4)  # probabilities
        assert answer.p_value is not None
        assert (answer.route == "unknown") == (answer.closeness < fitted.gates.known)
    own = HybridClassifier(settings(work / "index", open_set_threshold=0.2, confidence_threshold=0.3))
    assert (own.thresholds.confidence, own.thresholds.source) == (0.3, "configured")  # type: ignore[union-attr]
    assert own.classify(images[0]).p_value is None


def test_the_same_index_and_seed_give_the_same_calibration(work: Path) -> None:
    first, second = (calibrate(HybridClassifier(settings(work / "index")), seed=3)[0] for _ in range(2))
    assert (first.gates, first.head, first.novelty, first.arrays) == (
        second.gates,
        second.head,
        second.novelty,
        second.arrays,
    )


def test_held_out_images_fit_the_cuts_and_are_remembered(work: Path) -> None:
    (work / "held_out/red/bad.jpg").write_bytes(b"no photo")
    fitted, skipped = calibrate(
        HybridClassifier(settings(work / "index")), held_out=read_corpus(work / "held_out")
    )
    assert [s.code for s in skipped] == ["unsupported_format"]
    assert fitted.n_held_out == 60
    stored = read_calibration(work / "index")
    assert stored is not None
    assert len(stored.held_out) == 60
    assert len(stored.decider.calibrated) == 60


def test_a_score_and_a_head_may_be_asked_for(work: Path) -> None:
    classifier = HybridClassifier(settings(work / "index"))
    fitted, _ = calibrate(classifier, head="gda", score="max_similarity")
    assert set(fitted.head.weights) == {"gda"}
    assert fitted.novelty.names == ("max_similarity",)
    with pytest.raises(ConfigError, match="unknown head or score 'gdb'; did you mean 'gda'"):
        calibrate(classifier, head="gdb")


def test_labels_left_out_of_the_settings_take_no_part(work: Path) -> None:
    config = PipelineConfig(
        encoder=FAKE,
        retrieval={"index_path": work / "index"},
        labels=("blue", "red"),
        rerank={"enabled": False},
    )
    fitted, _ = calibrate(HybridClassifier(config))
    assert (fitted.labels, fitted.n_images) == (("blue", "red"), 40)
    classifier = HybridClassifier(config)
    classifier.check_index()
    answer = classifier.classify(work / "held_out/green/0.png")
    assert {c.label for c in answer.candidates if c.score > 0} <= {"blue", "red"}
    with pytest.raises(ConfigError, match="was calibrated with labels"):
        HybridClassifier(settings(work / "index")).check_index()


def test_the_text_prior_takes_part(work: Path) -> None:
    by_name = HybridClassifier(settings(work / "index", text_weight=1.0))
    fitted, _ = calibrate(by_name)
    assert (fitted.text_weight, fitted.text_temperature) == (1.0, 0.01)
    by_name.check_index()
    with pytest.raises(ConfigError, match="was calibrated with text prior text weight 1.0"):
        HybridClassifier(settings(work / "index")).check_index()


def test_what_cannot_be_calibrated_is_refused(work: Path) -> None:
    classifier = HybridClassifier(settings(work / "index"))
    with pytest.raises(CorpusError, match="at least 20"):
        calibrate(classifier, held_out=read_corpus(write_corpus(work / "few", per_label=2, seed=9000)))
    with pytest.raises(CorpusError, match=r"blue/0\.png is in the index too"):
        calibrate(classifier, held_out=read_corpus(work / "corpus"))
    (work / "held_out/red").rename(work / "held_out/mauve")
    with pytest.raises(CorpusError, match="no answer can be 'mauve'"):
        calibrate(classifier, held_out=read_corpus(work / "held_out"))
    build_index(work / "corpus", work / "i.npz", encoder=FAKE)
    with pytest.raises(ConfigError, match="index folder"):
        calibrate(HybridClassifier(settings(work / "i.npz")))
    assert read_calibration(work / "index") is None


def test_labels_with_one_image_cannot_be_simulated(tmp_path: Path) -> None:
    build_index(write_corpus(tmp_path / "corpus", per_label=1), tmp_path / "index", encoder=FAKE)
    with pytest.raises(CorpusError, match="0 different images of labels with at least two"):
        calibrate(HybridClassifier(settings(tmp_path / "index")))


def test_one_label_alone_is_told_from_the_rest_by_similarity(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", per_label=40)
    for label in ("green", "blue"):
        shutil.rmtree(corpus / label)
    build_index(corpus, tmp_path / "index", encoder=FAKE)
    fitted, _ = calibrate(HybridClassifier(settings(tmp_path / "index")))
    assert fitted.novelty.names == ("max_similarity",)
    assert fitted.expected_unknown == {}
    with pytest.raises(ConfigError, match="one label"):
        calibrate(HybridClassifier(settings(tmp_path / "index")), CalibrationTarget(costs=Costs(1, 1, 0.5)))


def test_the_same_photo_under_two_labels_votes_for_neither_of_its_copies(work: Path) -> None:
    """Each copy is asked without the other: were they neighbours, the wrong label would be certain."""
    for i in range(5):
        shutil.copy(work / f"corpus/red/{i}.png", work / f"corpus/blue/copy{i}.png")
    build_index(work / "corpus", work / "index", encoder=FAKE)
    fitted, _ = calibrate(HybridClassifier(settings(work / "index")))
    assert fitted.n_images == 60  # one of each content
    assert fitted.heads["knn"]["accuracy"] >= 50 / 60


def test_photos_that_all_look_the_same_are_refused(tmp_path: Path) -> None:
    for label in ("red", "blue"):
        (tmp_path / "corpus" / label).mkdir(parents=True)
        for i in range(20):  # the same pixels, other bytes
            note = PngInfo()
            note.add_text("note", f"{label} {i}")
            picture((9, 9, 9)).save(tmp_path / "corpus" / label / f"{i}.png", pnginfo=note)
    build_index(tmp_path / "corpus", tmp_path / "index", encoder=FAKE)
    with pytest.raises(CorpusError, match="nearly the same vector"):
        calibrate(HybridClassifier(settings(tmp_path / "index")))


def test_no_photo_can_be_both_calibrated_on_and_evaluated(work: Path) -> None:
    """There is nothing to hand evaluation data in by but `held_out`, and what went in there is known."""
    classifier = HybridClassifier(settings(work / "index"))
    with pytest.raises(TypeError):
        calibrate(classifier, evaluation=read_corpus(work / "held_out"))  # type: ignore[call-arg]
    calibrate(classifier, held_out=read_corpus(work / "held_out"))
    with pytest.raises(CorpusError, match=r"held-out photos that the index was calibrated on"):
        evaluate(HybridClassifier(settings(work / "index")), read_corpus(work / "held_out"))
    with pytest.raises(CorpusError, match="60 photos are in the index too"):
        evaluate(HybridClassifier(settings(work / "index")), read_corpus(work / "corpus"))
    calibrate(classifier)  # on the index alone: the same photos are new again
    assert evaluate(HybridClassifier(settings(work / "index")), read_corpus(work / "held_out")).queries


def two_encoders(index: Path, *families: str) -> HybridClassifier:
    embeds = [{"embed": {"encoder": {"family": family}}} for family in families]
    steps = [*embeds, {"retrieve": {"index": str(index)}}, {"vote": {}}, {"open_set": {}}]
    return HybridClassifier(PipelineConfig(pipeline=tuple(steps)))


def test_heads_of_several_encoders_are_fused(work: Path) -> None:
    both = [FAKE, ModelSpec("descriptor")]
    build_index(work / "corpus", work / "both", encoder=both)
    classifier = two_encoders(work / "both", "fake", "descriptor")
    fitted, _ = calibrate(classifier, head="fusion", score="combination")
    assert {"gda#1", "prototype#1"} <= set(fitted.heads)
    assert {"mahalanobis#1", "gda_energy#1"} <= set(fitted.novelty.names)
    assert len(fitted.encoders) == 2
    assert fitted.heads["fusion"]["log_loss"] <= min(each["log_loss"] for each in fitted.heads.values())
    classifier.check_index()
    photo = work / "held_out/red/0.png"
    answer = classifier.classify(photo)
    assert answer.retrieval_label == "red"
    assert classifier.classify(photo).closeness == pytest.approx(answer.closeness, abs=1e-6)
    with pytest.raises(ConfigError, match="encoder descriptor .* which no photo goes through"):
        two_encoders(work / "both", "fake").check_index()
    alone, _ = calibrate(two_encoders(work / "both", "fake"))
    assert len(alone.encoders) == 1


def test_names_without_photos_do_not_shift_the_others(work: Path) -> None:
    """A label known by its name alone comes first in the alphabet, so every column moves by one."""
    config = PipelineConfig(
        encoder=FAKE,
        retrieval={"index_path": work / "index", "text_weight": 0.1},
        labels=("amber", "blue", "green", "red"),
        rerank={"enabled": False},
    )
    plain, _ = calibrate(HybridClassifier(settings(work / "index")))
    named, _ = calibrate(HybridClassifier(config))
    assert named.heads == plain.heads
    assert named.expected["accept"] + named.expected.get("rerank", 0) > 0.8
    classifier = HybridClassifier(config)
    classifier.check_index()
    answers = classifier.classify_batch([work / "held_out/red" / f"{i}.png" for i in range(20)])
    assert [answer.retrieval_label for answer in answers].count("red") >= 17
    per_label, _ = calibrate(HybridClassifier(config), CalibrationTarget(keep_known=0.9, every_label=True))
    assert set(per_label.gates.per_label) <= {"blue", "green", "red"}


def clouds(tmp_path: Path, counts: dict[str, int], spread: float = 0.4) -> HybridClassifier:
    """A classifier with many neighbours, of an index of unit vectors around a direction per label."""
    rng = np.random.default_rng(0)
    contract = EncoderContract("fake", "", "", "", "", 16, "float32")
    centres = rng.normal(size=(len(counts), 16))
    records, vectors = [], []
    for centre, (label, count) in zip(centres, counts.items(), strict=True):
        records += [Record(f"{label}/{i}.png", label, f"{label}{i}") for i in range(count)]
        vectors.append(centre / np.linalg.norm(centre) + spread * rng.normal(size=(count, 16)))
    rows = np.concatenate(vectors)
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    write_npz(tmp_path / "clouds.npz", contract, rows, Records.of(records))
    import_npz(tmp_path / "clouds.npz", tmp_path / "clouds", BuildOptions())
    return HybridClassifier(settings(tmp_path / "clouds", top_k=50))


class TestNoArtefact:
    """What differs between known and unknown must be the photo, not how it was simulated."""

    def test_neighbours_that_only_unknowns_lack(self, tmp_path: Path) -> None:
        fitted, _ = calibrate(clouds(tmp_path, {"a": 15, "b": 15, "c": 15}))
        assert fitted.depth <= 30  # as unknown no image has more
        assert max(fitted.auroc.values()) < 0.999

    def test_two_labels_leave_one_to_compare_with(self, tmp_path: Path) -> None:
        fitted, _ = calibrate(clouds(tmp_path, {"a": 60, "b": 60}))
        assert set(fitted.auroc) <= {
            "max_similarity",
            "kth_similarity",
            "prototype_similarity",
            "mahalanobis",
            "combination",
        }

    def test_few_images_of_many_labels(self, tmp_path: Path) -> None:
        fitted, _ = calibrate(clouds(tmp_path, {f"{i:02d}": 2 for i in range(50)}, spread=0.05))
        assert fitted.gates.probability > 0

    def test_all_but_one_label_with_a_single_image(self, tmp_path: Path) -> None:
        fitted, _ = calibrate(clouds(tmp_path, {"a": 25, "b": 1}))
        assert fitted.novelty.names == ("max_similarity",)


def test_held_out_photos_of_a_label_that_is_never_answered_are_refused(work: Path) -> None:
    config = PipelineConfig(encoder=FAKE, retrieval={"index_path": work / "index"}, labels=("blue", "red"))
    with pytest.raises(CorpusError, match="no answer can be 'green'"):
        calibrate(HybridClassifier(config), held_out=read_corpus(work / "held_out"))


def test_settings_of_another_calibration_are_refused_without_loading(work: Path) -> None:
    calibrate(HybridClassifier(settings(work / "index")))
    photo = work / "held_out/red/0.png"
    with pytest.raises(ConfigError, match="set at least 10"):
        HybridClassifier(settings(work / "index", top_k=2)).classify(photo)
    with pytest.raises(ConfigError, match="set at least 10"):
        list(HybridClassifier(settings(work / "index", top_k=2)).classify_files([photo]))


def test_costs_that_keep_nothing_are_refused() -> None:
    data = seen([0.1, 0.2, 0.3], [0.5, 0.7, 0.9])
    with pytest.raises(ConfigError, match="cheapest to reject every known image"):
        fit_gates(data, CalibrationTarget(costs=Costs(1, 100, 0.9)), LABELS)
