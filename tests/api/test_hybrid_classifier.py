from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fitted import write_fitted
from lmm_classifier import HybridClassifier, PipelineConfig, registry
from lmm_classifier.api.build_index import build_index
from lmm_classifier.api.classification import Classification
from lmm_classifier.corpus.corpus import SkippedFile
from lmm_classifier.errors import ConfigError, EncoderMismatchError, ImageError, IndexFolderError, ModelError
from lmm_classifier.models.base import Question
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.steps.rerank import Rerank
from synthetic import COLOURS, picture, write_corpus

FAKE = ModelSpec("fake")
PURPLE = (160, 60, 170)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    build_index(write_corpus(folder / "corpus"), folder / "index", encoder=FAKE)
    return folder / "index"


def classifier(index: Path, *, rerank: dict[str, Any] | None = None, **settings: Any) -> HybridClassifier:
    retrieval = {"index_path": index, "confidence_threshold": 0.9, "open_set_threshold": 0.8}
    retrieval |= settings.pop("retrieval", {})
    rerank = {"family": "fake", "model_name": ""} | (rerank or {})
    return HybridClassifier(PipelineConfig(encoder=FAKE, retrieval=retrieval, rerank=rerank, **settings))


def test_a_clear_case_is_decided_by_retrieval_and_explains_itself(index: Path) -> None:
    answer = classifier(index).classify(picture(COLOURS["red"], seed=999))
    assert (answer.label, answer.status, answer.stage) == ("red", "known", "open_set")
    assert not answer.used_reranker
    assert answer.degraded is None
    assert answer.candidates[0].label == "red"
    assert answer.score == pytest.approx(answer.candidates[0].score)
    assert all(n.label == "red" and n.path.startswith("red/") for n in answer.neighbours[:6])
    similarities = [n.similarity for n in answer.neighbours]
    assert similarities == sorted(similarities, reverse=True)
    assert answer.thresholds is not None
    assert answer.thresholds.confidence == 0.9
    assert answer.timings.keys() == {"embed", "retrieve", "vote", "open_set", "rerank"}
    assert all(seconds >= 0 for seconds in answer.timings.values())
    assert "confidence_threshold 0.900" in answer.reason
    assert json.loads(json.dumps(answer.to_dict()))["label"] == "red"


def test_every_documented_kind_of_image_gets_the_same_answer(index: Path, tmp_path: Path) -> None:
    image = picture(COLOURS["green"], seed=5)
    image.save(tmp_path / "photo.png")
    sources = [
        image,
        tmp_path / "photo.png",
        str(tmp_path / "photo.png"),
        (tmp_path / "photo.png").read_bytes(),
        np.asarray(image),
    ]
    answers = classifier(index).classify_batch(sources)
    assert {a.label for a in answers} == {"green"}
    assert len({round(a.score, 6) for a in answers}) == 1
    assert [a.source for a in answers] == [
        "image-0",
        *[str(tmp_path / "photo.png")] * 2,
        "image-3",
        "image-4",
    ]


def test_batch_equals_one_by_one(index: Path) -> None:
    images = [picture(c, seed=70 + i) for i in range(7) for c in (*COLOURS.values(), PURPLE)]
    one = classifier(index, batch_size=5)
    for alone, together in zip(map(one.classify, images), one.classify_batch(images), strict=True):
        assert (alone.label, alone.stage) == (together.label, together.stage)
        assert alone.score == pytest.approx(together.score, abs=1e-6)


def test_far_from_everything_is_unknown_only_in_an_open_set(index: Path) -> None:
    strict = {"confidence_threshold": 0.999, "open_set_threshold": 0.995}
    answer = classifier(index, retrieval=strict).classify(picture(PURPLE))
    assert (answer.label, answer.status, answer.stage) == ("unknown", "unknown", "open_set")
    assert answer.retrieval_label == "unknown"
    closed = classifier(index, retrieval=strict, allow_unknown=False).classify(picture(PURPLE))
    assert closed.label in COLOURS
    assert all(c.label != "unknown" for c in closed.candidates)


def test_labels_close_the_set_of_answers(index: Path) -> None:
    only = classifier(index, labels=("blue", "green"), allow_unknown=False)
    answer = only.classify(picture(COLOURS["red"], seed=3))
    assert answer.label in {"blue", "green"}
    assert {n.label for n in answer.neighbours} <= {"blue", "green"}
    assert classifier(index, labels=("blue", "mauve")).unanswerable_labels == ("mauve",)
    by_name = {"text_weight": 0.1}
    assert classifier(index, labels=("blue", "mauve"), retrieval=by_name).unanswerable_labels == ()
    with pytest.raises(ConfigError, match="none of the configured labels"):
        classifier(index, labels=("mauve",)).check_index()


UNSURE = {"confidence_threshold": 1.0, "open_set_threshold": 0.1, "top_k": 18}


def test_only_uncertain_images_reach_the_reranker(index: Path) -> None:
    one = classifier(index, retrieval=UNSURE, rerank={"model_name": "green"})
    answer = one.classify(picture(COLOURS["red"], seed=8))
    assert (answer.label, answer.stage, answer.used_reranker) == ("green", "rerank", True)
    assert answer.retrieval_label == "red"
    shown = {c.label: c.probability for c in answer.candidates if c.probability is not None}
    assert shown.keys() == {"red", "green", "blue", "unknown"}
    assert sum(shown.values()) == pytest.approx(1)
    # -0.1 for the preferred option and -3 for three others, in the fake's own words
    assert answer.score == pytest.approx(1 / (1 + 3 * np.exp(-2.9)))


def test_the_reranker_may_say_unknown_only_in_an_open_set(index: Path) -> None:
    ask = {"model_name": "unknown"}
    answer = classifier(index, retrieval=UNSURE, rerank=ask).classify(picture(COLOURS["red"]))
    assert (answer.label, answer.status, answer.stage) == ("unknown", "unknown", "rerank")
    closed = classifier(index, retrieval=UNSURE, rerank=ask, allow_unknown=False)
    assert closed.classify(picture(COLOURS["red"])).label in COLOURS


def test_a_failing_reranker_leaves_the_answer_of_retrieval_marked(index: Path) -> None:
    for model in ({"model_name": "fails"}, {"family": "qwen-vl", "model_name": "./nowhere"}):
        one = classifier(index, retrieval=UNSURE, rerank=model)
        answer = one.classify(picture(COLOURS["red"], seed=8))
        assert (answer.label, answer.status, answer.used_reranker) == ("red", "uncertain", False)
        assert answer.degraded is not None
        assert answer.degraded.startswith("rerank: ")


class OddChooser:
    """Answers as its weights say, in ways that the protocol does not allow."""

    def __init__(self, spec: ModelSpec) -> None:
        self._how = spec.weights

    def log_likelihoods(self, questions: Sequence[Question], batch_size: int) -> list[Any]:
        if self._how == "raises":
            raise KeyError("surprise")
        if self._how == "dark" and any(np.asarray(q.image).mean() < 60 for q in questions):
            raise ModelError("cannot see in the dark")
        answers = {"nothing": [], "short": [np.zeros(1)] * len(questions)}
        right = [np.zeros(len(q.options), np.float32) for q in questions]
        nan = [values * np.nan for values in right]
        return {**answers, "nan": nan, "dark": right}[self._how]


@pytest.fixture
def odd_chooser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BUILTINS["chooser"], "odd", registry.Entry(f"{__name__}:OddChooser"))


@pytest.mark.usefixtures("odd_chooser")
@pytest.mark.parametrize("how", ["nothing", "short", "nan", "raises"])
def test_a_reranker_that_breaks_its_promise_degrades_and_nothing_else(index: Path, how: str) -> None:
    one = classifier(index, retrieval=UNSURE, rerank={"family": "odd", "model_name": how})
    for answer in one.classify_batch([picture(COLOURS["red"], seed=8), picture(COLOURS["blue"], seed=8)]):
        assert answer.status == "uncertain"
        assert answer.degraded is not None
        assert "'odd'" in answer.degraded
        assert answer.label == answer.retrieval_label


def test_a_reranker_that_is_down_is_logged_once_a_batch(
    index: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = [picture(COLOURS["red"], seed=i) for i in range(5)]
    classifier(index, retrieval=UNSURE, rerank={"model_name": "fails"}).classify_batch(images)
    messages = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert messages == ["rerank failed for 5 of 5 uncertain regions: the fake chooser was told to fail"]


@pytest.mark.usefixtures("odd_chooser")
def test_one_picture_the_reranker_cannot_take_costs_the_others_nothing(index: Path) -> None:
    one = classifier(index, retrieval=UNSURE, rerank={"family": "odd", "model_name": "dark"})
    images = [picture(COLOURS["red"], seed=8), picture((5, 5, 5)), picture(COLOURS["blue"], seed=8)]
    together = one.classify_batch(images)
    assert [a.degraded is not None for a in together] == [False, True, False]
    assert [a.label for a in together] == [one.classify(image).label for image in images]


def test_a_label_without_a_majority_stays_uncertain(index: Path) -> None:
    # Four options at the same likelihood: a quarter each.
    ask = {"family": "odd", "model_name": "dark"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.BUILTINS["chooser"], "odd", registry.Entry(f"{__name__}:OddChooser"))
        answer = classifier(index, retrieval=UNSURE, rerank=ask).classify(picture(COLOURS["red"], seed=8))
    assert answer.score == pytest.approx(0.25)
    assert answer.status == ("unknown" if answer.label == "unknown" else "uncertain")


def test_a_calibration_for_other_settings_is_refused(index: Path, tmp_path: Path) -> None:
    shutil.copytree(index, tmp_path / "index")
    write_fitted(tmp_path / "index")
    unset = {"confidence_threshold": None, "open_set_threshold": None}
    classifier(tmp_path / "index", retrieval=unset).check_index()
    with pytest.raises(ConfigError, match="was calibrated with 10 neighbours, the settings say top_k 5"):
        classifier(tmp_path / "index", retrieval={**unset, "top_k": 5}).check_index()
    classifier(tmp_path / "index", retrieval={"top_k": 5}).check_index()  # both thresholds are set


def test_a_calibration_holds_with_its_text_prior_and_no_other(index: Path, tmp_path: Path) -> None:
    shutil.copytree(index, tmp_path / "index")
    unset = {"confidence_threshold": None, "open_set_threshold": None}
    off, on = ({**unset, "text_weight": weight} for weight in (0.0, 0.3))
    write_fitted(tmp_path / "index")
    classifier(tmp_path / "index", retrieval=off).check_index()
    with pytest.raises(
        ConfigError, match=r"with text prior text weight 0, .* say text weight 0\.3 \(temperature 0\.01\)"
    ):
        classifier(tmp_path / "index", retrieval=on).check_index()
    write_fitted(tmp_path / "index", text_weight=0.3, text_temperature=0.01)
    classifier(tmp_path / "index", retrieval=on).check_index()
    classifier(tmp_path / "index", retrieval={"text_weight": 0.2}).check_index()  # both thresholds are set
    for other in (off, {**unset, "text_weight": 0.2}):
        with pytest.raises(
            ConfigError, match=r"with text prior text weight 0\.3 .*, the settings say text weight 0"
        ):
            classifier(tmp_path / "index", retrieval=other).check_index()
    write_fitted(tmp_path / "index", text_weight=0.3, text_temperature=0.02)
    with pytest.raises(ConfigError, match=r"temperature 0\.02\), the settings"):
        classifier(tmp_path / "index", retrieval=on).check_index()


def test_without_a_reranker_the_best_label_stands(index: Path) -> None:
    answer = classifier(index, retrieval=UNSURE, rerank={"enabled": False}).classify(
        picture(COLOURS["red"], seed=8)
    )
    assert (answer.label, answer.status, answer.stage) == ("red", "uncertain", "open_set")


def test_the_reranker_is_not_opened_before_it_is_needed(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    monkeypatch.setattr("lmm_classifier.steps.rerank.load_chooser", lambda spec: opened.append(spec))
    one = classifier(index, rerank={"model_name": "not opened yet"})
    one.load()
    one.classify(picture(COLOURS["red"], seed=999))
    assert opened == []


def test_candidates_are_shuffled_by_the_image_and_not_ranked(index: Path) -> None:
    one = classifier(index, retrieval=UNSURE)
    [rerank] = [step for step in one.pipeline.steps if isinstance(step, Rerank)]
    first_ranks = []
    for seed in range(40):
        [doubt] = rerank.requests(_before_rerank(one, picture(COLOURS["red"], seed=seed)))
        [again] = rerank.requests(_before_rerank(one, picture(COLOURS["red"], seed=seed)))
        assert doubt.options == again.options
        assert len(set(doubt.options)) == len(doubt.options)
        first_ranks.append(doubt.options.index("red"))
    assert set(first_ranks) == {0, 1, 2, 3}  # the best label stands at every place


def _before_rerank(one: HybridClassifier, image: Image.Image) -> Any:
    from lmm_classifier.pipeline import Pipeline
    from lmm_classifier.types import Sample

    return next(Pipeline(one.pipeline.steps[:-1]).run([Sample.from_image("x", image)]))


def test_another_encoders_index_is_refused(index: Path) -> None:
    settings = PipelineConfig(encoder=ModelSpec("descriptor"), retrieval={"index_path": index})
    with pytest.raises(EncoderMismatchError, match=r"was built by encoder fake .*rebuild the index"):
        HybridClassifier(settings).classify(picture(PURPLE))
    other = PipelineConfig(encoder=ModelSpec("fake", "other weights"), retrieval={"index_path": index})
    with pytest.raises(EncoderMismatchError):
        HybridClassifier(other).classify(picture(PURPLE))


def test_missing_index_and_unreadable_images_say_so(index: Path, tmp_path: Path) -> None:
    with pytest.raises(IndexFolderError, match="index build"):
        classifier(tmp_path / "nowhere").classify(picture(PURPLE))
    with pytest.raises(ImageError, match=r"nowhere\.jpg: .*\[not_found\]"):
        classifier(index).classify_batch([picture(PURPLE), tmp_path / "nowhere.jpg"])


def test_files_are_answered_in_order_with_bad_ones_in_their_place(index: Path, tmp_path: Path) -> None:
    paths = []
    for i, colour in enumerate([*COLOURS.values()] * 3):
        paths.append(tmp_path / f"{i}.png")
        picture(colour, seed=i).save(paths[-1])
    paths[4].write_bytes(b"no image")
    answers = list(classifier(index, batch_size=2).classify_files(paths))
    assert isinstance(answers[4], SkippedFile)
    assert answers[4].code == "unsupported_format"
    good = [a for a in answers if isinstance(a, Classification)]
    assert [a.source for a in good] == [str(p) for p in paths if p != paths[4]]
    assert [a.label for a in good] == [[*COLOURS][i % 3] for i in range(9) if i != 4]


def test_the_reserved_label_is_refused_unless_unknowns_are_off(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    (corpus / "red").rename(corpus / "unknown")
    build_index(corpus, tmp_path / "index", encoder=FAKE)
    with pytest.raises(ConfigError, match="reserved"):
        classifier(tmp_path / "index").load()
    classifier(tmp_path / "index", allow_unknown=False).load()


def test_the_text_prior_may_not_answer_with_the_reserved_label_either(index: Path) -> None:
    settings: dict[str, Any] = {"labels": ("red", "unknown"), "retrieval": {"text_weight": 0.5}}
    with pytest.raises(ConfigError, match="text_prior has a label named 'unknown', which is reserved"):
        classifier(index, **settings).check_index()
    classifier(index, **settings, allow_unknown=False).check_index()


def test_the_text_prior_needs_the_encoder_of_the_photos(index: Path) -> None:
    steps = (
        {"embed": {"encoder": {"family": "fake"}}},
        {"retrieve": {"index": index}},
        {"vote": {}},
        {"text_prior": {"encoder": {"family": "clip"}, "weight": 0.5}},
        {"open_set": {}},
    )
    one = HybridClassifier(PipelineConfig(pipeline=steps))
    with pytest.raises(ConfigError, match="text_prior has encoder clip, the photos are embedded by fake"):
        one.check_index()


def test_a_label_without_images_is_answered_by_its_name(index: Path) -> None:
    # The fake's text is the picture of the colour, so the evidence is all but the weight.
    settings: dict[str, Any] = {"labels": (*COLOURS, "purple"), "retrieval": {"text_weight": 0.95}}
    one = classifier(index, **settings)
    one.load()
    answer = one.classify(picture((128, 0, 128), seed=3))
    assert (answer.label, answer.status, answer.stage) == ("purple", "known", "open_set")
    assert answer.score == pytest.approx(0.95, abs=0.01)


def test_npz_index_works_too(index: Path, tmp_path: Path) -> None:
    build_index(index.parent / "corpus", tmp_path / "index.NPZ", encoder=FAKE)
    image = picture(COLOURS["blue"], seed=77)
    from_npz, from_folder = (
        classifier(tmp_path / "index.NPZ").classify(image),
        classifier(index).classify(image),
    )
    assert (from_npz.label, from_npz.neighbours) == (from_folder.label, from_folder.neighbours)


def test_a_pipeline_without_a_decision_is_no_classifier() -> None:
    with pytest.raises(ConfigError, match="neighbours, scores, verdicts"):
        HybridClassifier(PipelineConfig(pipeline=({"embed": {"encoder": {"family": "fake"}}},)))
