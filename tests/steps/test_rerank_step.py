"""The reranker as a step: how it asks, whom it spares, and what is left when a model fails or is late."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from clock import from_now
from lmm_classifier import HybridClassifier, PipelineConfig, registry
from lmm_classifier.api.build_index import build_index
from lmm_classifier.errors import ConfigError
from lmm_classifier.models.base import Question
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.steps.rerank import Rerank
from lmm_classifier.types import FloatArray, required
from synthetic import COLOURS, picture, write_corpus
from uncertain import uncertain
from vlm_server import CHAT, SYSTEMONE, Reply, completion, dripping, refuses, says, serving, silent

FAKE = ModelSpec("fake")
TINY = ModelSpec("qwen-vl", "shipped:qwen2-vl-digits", dtype="float32")
SLACK_S = 0.25  # two busy cores


class Looking:
    """Says yes to two pictures of like colour, and to a label that is in the question and in `weights`."""

    asked: ClassVar[list[Question]] = []

    def __init__(self, spec: ModelSpec) -> None:
        self._likes = spec.weights

    def log_likelihoods(self, questions: list[Question], batch_size: int) -> list[FloatArray]:
        self.asked.extend(questions)
        return [np.log(np.asarray(self._odds(q), np.float32)) for q in questions]

    def _odds(self, question: Question) -> list[float]:
        if question.exemplars:
            means = [np.asarray(i, float).mean((0, 1)) for i in (question.image, question.exemplars[0][1])]
            yes = 0.9 if np.abs(means[0] - means[1]).max() < 60 else 0.1
        else:
            yes = 0.9 if self._likes in question.prompt else 0.1
        return [yes, 1 - yes]


class Slow(Looking):
    def log_likelihoods(self, questions: list[Question], batch_size: int) -> list[FloatArray]:
        time.sleep(3)
        return super().log_likelihoods(questions, batch_size)


class SlowToOpen(Looking):
    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        time.sleep(3)


@pytest.fixture(autouse=True)
def choosers(monkeypatch: pytest.MonkeyPatch) -> None:
    for cls in (Looking, Slow, SlowToOpen):
        monkeypatch.setitem(
            registry.BUILTINS["chooser"], cls.__name__, registry.Entry(f"{__name__}:{cls.__name__}")
        )
    Looking.asked.clear()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("rerank") / "corpus")


@pytest.fixture(scope="module")
def index(corpus: Path) -> Path:
    build_index(corpus, corpus.parent / "index", encoder=FAKE)
    return corpus.parent / "index"


def classifier(index: Path, family: str = "Looking", top_k: int = 18, **rerank: Any) -> HybridClassifier:
    """Of which no answer of retrieval is sure."""
    return HybridClassifier(
        PipelineConfig(
            encoder=FAKE,
            retrieval={
                "index_path": index,
                "top_k": top_k,
                "confidence_threshold": 1.0,
                "open_set_threshold": 0.0,
            },
            rerank={"family": family, "model_name": "", "self_test": False} | rerank,
        )
    )


class TestModes:
    def test_pairs_compare_with_the_nearest_photos_of_every_candidate(
        self, corpus: Path, index: Path
    ) -> None:
        by_pairs = classifier(index, mode="pairwise", exemplars=2, corpus_root=corpus)
        answer = by_pairs.classify(picture((190, 60, 60), seed=7))
        assert (answer.label, answer.stage) == ("red", "rerank")
        assert len(Looking.asked) == 3 * 2
        shown = [q.exemplars[0][1] for q in Looking.asked]
        folders = [
            path.parent.name
            for image in shown
            for path in corpus.glob("*/*.png")
            if np.array_equal(np.asarray(image), np.asarray(Image.open(path)))
        ]
        assert sorted(folders) == ["blue", "blue", "green", "green", "red", "red"]
        # none of them is of like colour: unknown
        assert by_pairs.classify(picture((128, 128, 128), seed=8)).label == "unknown"

    def test_copies_of_the_query_do_not_stand_for_the_photos_of_a_label(
        self, corpus: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(corpus, tmp_path / "corpus")
        for i in range(9):
            shutil.copy(corpus / "red/3.png", tmp_path / f"corpus/red/copy{i}.png")
        build_index(tmp_path / "corpus", tmp_path / "index", encoder=FAKE)
        comparing = classifier(
            tmp_path / "index", mode="pairwise", exemplars=4, corpus_root=tmp_path / "corpus", top_k=28
        )
        assert comparing.classify(corpus / "red/3.png").degraded is None
        own = np.asarray(Image.open(corpus / "red/3.png"))
        assert len(Looking.asked) == 3 * 4
        assert not any(np.array_equal(own, np.asarray(q.exemplars[0][1])) for q in Looking.asked)

    @pytest.mark.parametrize("mode", ["listwise", "pointwise"])
    def test_a_label_that_is_named_unknown_is_one_where_every_photo_gets_a_label(self, mode: str) -> None:
        sample = uncertain("x", ("a", "b", "unknown"), (0.2, 0.3, 0.5))
        verdict = replace(required(sample.verdicts)[0], candidates=("unknown", "b", "a"))
        model = ModelSpec("fake", "unknown") if mode == "listwise" else ModelSpec("Looking", "label unknown")
        step = Rerank(model=model, mode=mode, allow_unknown=False, self_test=False)  # type: ignore[arg-type]
        [finished] = step.run([replace(sample, verdicts=(verdict,))])
        [verdict], [choice] = required(finished.verdicts), required(finished.choices)
        assert choice is not None
        assert set(choice.options) == {"a", "b", "unknown"}
        assert (verdict.label, verdict.status) == ("unknown", "known")

    def test_the_answer_that_stands_is_an_option_after_another_reranker(self) -> None:
        first = Rerank(model=ModelSpec("fake", "c"), self_test=False)
        [once] = first.run([uncertain("x", ("a", "b", "c"), (0.5, 0.3, 0.2))])
        again = replace(required(once.verdicts)[0], status="uncertain", route="rerank", candidates=())
        second = Rerank(model=ModelSpec("fake", "a"), max_candidates=2, self_test=False)
        [twice] = second.run([replace(once, verdicts=(again,))])
        [choice] = required(twice.choices)
        assert choice is not None
        assert set(choice.options) == {"a", "b", "c", "unknown"}

    def test_a_photo_of_the_index_is_not_compared_with_itself(self, corpus: Path, index: Path) -> None:
        path = corpus / "red/3.png"
        classifier(index, mode="pairwise", exemplars=4, corpus_root=corpus).classify(path)
        own = np.asarray(Image.open(path))
        assert not any(np.array_equal(own, np.asarray(q.exemplars[0][1])) for q in Looking.asked)

    def test_points_ask_about_one_label_at_a_time(self, index: Path) -> None:
        answer = classifier(index, mode="pointwise", model_name="green").classify(picture(COLOURS["red"]))
        assert answer.label == "green"  # what this chooser says, not what retrieval thinks
        assert [q.prompt for q in Looking.asked].count("Does the label green fit the image?") == 1
        assert len(Looking.asked) == 3

    @pytest.mark.parametrize("scoring", ["likelihood", "normalised", "letter"])
    def test_the_shipped_model_reads_lists(self, index: Path, scoring: str) -> None:
        answer = classifier(
            index,
            "qwen-vl",
            model_name=TINY.weights,
            dtype="float32",
            scoring=scoring,
            permutations=2,
            self_test=True,
        ).classify(picture(COLOURS["red"]))
        assert answer.stage == "rerank"
        assert sum(c.probability or 0 for c in answer.candidates) == pytest.approx(1)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"mode": "pairwise"}, "set exemplars to 1 or more"),
            ({"exemplars": 1}, "set index, and corpus_root"),
            ({"mode": "pointwise", "prompt_template": "Well?"}, "must hold {candidate}, where the labels go"),
            ({"prompt_template": "Well?"}, "must hold {candidates}, where the labels go"),
            ({"permutations": 0}, "permutations"),
            ({"max_share": 1.5}, "max_share"),
            ({"max_share": 0.0}, "max_share"),
            ({"mode": "pointwise", "exemplars": 1, "corpus_root": "."}, "shows no photos of candidates"),
            ({"mode": "pointwise", "scoring": "letter"}, "are of lists"),
            ({"corpus_root": "."}, "set how many"),
            ({"twin": {"family": "fake"}}, "leave it out"),
            ({"family": "openai_api", "model_name": "http://localhost:8000/v1#m"}, "set scoring: letter"),
            ({"deadline": 0}, "deadline"),
        ],
    )
    def test_settings_that_ask_for_nothing_are_refused(
        self, index: Path, options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises((ConfigError, ValueError), match=message):
            classifier(index, **options)

    def test_photos_that_are_gone_leave_retrievals_answer_and_say_so(
        self, index: Path, tmp_path: Path
    ) -> None:
        answer = classifier(index, mode="pairwise", exemplars=1, corpus_root=tmp_path).classify(
            picture(COLOURS["red"])
        )
        assert (answer.label, answer.stage) == ("red", "open_set")
        assert answer.degraded is not None
        assert "check corpus_root" in answer.degraded


class TestBudget:
    def test_a_share_takes_the_most_doubtful(self) -> None:
        sure = [0.9, 0.5, 0.7, 0.6, 0.8, 0.55, 0.95, 0.65, 0.75, 0.85]
        samples = [uncertain(str(i), ("a", "b"), (p, 1 - p)) for i, p in enumerate(sure)]
        step = Rerank(model=ModelSpec("fake", "b"), max_share=0.35, self_test=False, allow_unknown=False)
        verdicts = [required(sample.verdicts)[0] for sample in step.run(samples)]
        assert [i for i, v in enumerate(verdicts) if v.decided_by == "rerank"] == [1, 3, 5]
        assert (
            verdicts[0].rerank_skipped
            == "max_share allows 3 of 10 photos, and this one is more certain than those"
        )
        assert [v.certainty for v in verdicts] == pytest.approx(sure)

    def test_a_share_of_one_photo_is_that_photo(self) -> None:
        [finished] = Rerank(model=FAKE, max_share=0.01, self_test=False).run(
            [uncertain("x", ("a", "b"), (0.6, 0.4))]
        )
        assert required(finished.verdicts)[0].decided_by == "rerank"

    def test_the_time_that_opening_took_is_not_taken_for_that_of_a_pass(self) -> None:
        step = Rerank(ModelSpec("SlowToOpen", "b"), "pointwise", max_batch_size=1, max_seconds=4.5)
        step = replace(step, self_test=False)
        finished = step.run([uncertain(str(i), ("a", "b"), (0.6, 0.4)) for i in range(5)])
        assert [required(sample.verdicts)[0].decided_by for sample in finished] == ["rerank"] * 5

    def test_a_photo_that_is_late_already_costs_no_other_its_answer(self) -> None:
        old, new = (uncertain(name, ("a", "b"), (0.6, 0.4)) for name in ("old", "new"))
        old = replace(old, arrived=from_now(-10))
        step = Rerank(model=ModelSpec("fake", "b"), deadline=5.0, self_test=False)
        late, answered = (required(sample.verdicts)[0] for sample in step.run([old, new]))
        assert late.rerank_skipped == "deadline: 5 s have passed since the photo came in"
        assert (answered.label, answered.decided_by) == ("b", "rerank")

    @pytest.mark.parametrize("family", ["Slow", "SlowToOpen"])
    def test_who_waits_for_a_model_past_the_deadline_gets_retrievals_answer(
        self, index: Path, family: str
    ) -> None:
        late = classifier(index, family, mode="pointwise", deadline=0.5)
        late.load()
        answer = late.classify(picture(COLOURS["red"]))
        assert (answer.label, answer.status, answer.rerank_skipped) == (
            "red",
            "uncertain",
            "deadline: 0.5 s have passed since the photo came in",
        )
        assert answer.degraded is None

    @pytest.mark.timing
    @pytest.mark.parametrize("family", ["Slow", "SlowToOpen"])
    def test_nobody_waits_longer_than_the_deadline(self, index: Path, family: str) -> None:
        late = classifier(index, family, mode="pointwise", deadline=0.5)
        late.load()
        began = time.monotonic()
        late.classify(picture(COLOURS["red"]))
        assert time.monotonic() - began <= 0.55 + SLACK_S

    def test_the_local_model_is_stopped_and_goes_on_with_the_next_photo(self, index: Path) -> None:
        tiny = {"model_name": TINY.weights, "dtype": "float32"}
        classifier(index, "qwen-vl", **tiny).classify(picture(COLOURS["red"]))  # opens it
        answer = classifier(index, "qwen-vl", deadline=0.001, **tiny).classify(picture(COLOURS["red"]))
        assert answer.rerank_skipped == "deadline: 0.001 s have passed since the photo came in"
        assert classifier(index, "qwen-vl", **tiny).classify(picture(COLOURS["red"])).stage == "rerank"

    def test_answers_are_remembered(self, index: Path, tmp_path: Path) -> None:
        remembering = classifier(index, mode="pointwise", answers=tmp_path / "answers.sqlite")
        first, again = (remembering.classify(picture(COLOURS["red"])) for _ in range(2))
        assert len(Looking.asked) == 3
        assert (first.label, first.score) == (again.label, again.score)


FAULTS: dict[str, Reply] = {
    "silent": silent,
    "drip": dripping(200),
    "429": refuses(429),
    "500": refuses(500),
    "cut": says(b'{"choices": [{"mess'),
    "10 MB": says(b'"' + b"x" * 10_000_000 + b'"'),
    "wrong label": says(completion("a rose by any other name")),
    "no such path": refuses(404),
}


@pytest.mark.usefixtures("loopback")
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("ask", [{"scoring": "letter"}, {"mode": "pointwise"}], ids=str)
def test_no_fault_of_a_server_changes_an_answer_but_by_a_mark(
    index: Path, fault: str, ask: dict[str, Any]
) -> None:
    photo = picture((190, 60, 60), seed=7)
    alone = classifier(index, enabled=False).classify(photo)
    with serving({CHAT: FAULTS[fault], SYSTEMONE: FAULTS[fault]}) as server:
        strategy = classifier(index, "openai_api", model_name=server.weights, deadline=1.0, **ask)
        answer = strategy.classify(photo)
        assert server.asked
    assert (answer.label, answer.score, answer.status) == (alone.label, alone.score, "uncertain")
    assert (answer.degraded is None) != (answer.rerank_skipped is None)
    assert len((answer.degraded or answer.rerank_skipped or "").splitlines()) == 1
    if fault in ("silent", "drip"):
        assert answer.rerank_skipped == "deadline: 1 s have passed since the photo came in"


@pytest.mark.timing
@pytest.mark.usefixtures("loopback")
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("ask", [{"scoring": "letter"}, {"mode": "pointwise"}], ids=str)
def test_no_fault_of_a_server_outlasts_the_deadline(index: Path, fault: str, ask: dict[str, Any]) -> None:
    with serving({CHAT: FAULTS[fault], SYSTEMONE: FAULTS[fault]}) as server:
        strategy = classifier(index, "openai_api", model_name=server.weights, deadline=1.0, **ask)
        began = time.monotonic()
        strategy.classify(picture((190, 60, 60), seed=7))
        assert time.monotonic() - began <= 1.1 + SLACK_S


def test_a_model_that_fails_its_self_test_is_not_believed(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Moody(Looking):
        def log_likelihoods(self, questions: list[Question], batch_size: int) -> list[FloatArray]:
            return [np.log(np.asarray([0.1 * len(questions) % 1, 0.5], np.float32)) for _ in questions]

    monkeypatch.setattr(f"{__name__}.Moody", Moody, raising=False)
    monkeypatch.setitem(registry.BUILTINS["chooser"], "moody", registry.Entry(f"{__name__}:Moody"))
    answer = classifier(index, "moody", mode="pointwise", self_test=True).classify(picture(COLOURS["red"]))
    assert (answer.label, answer.stage) == ("red", "open_set")
    assert answer.degraded is not None
    assert "fails its self-test" in answer.degraded
