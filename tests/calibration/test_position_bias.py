from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy.special import log_softmax

from lmm_classifier import registry
from lmm_classifier.calibration.position_bias import FEWEST_CASES, MOST_CASES, ListBias
from lmm_classifier.models.base import Question
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.steps.rerank import Rerank
from lmm_classifier.types import FloatArray, Sample, Scores, Verdict

PLACES = np.asarray([0.7, 0.2, 0.1])


class Prejudiced:
    """Multiplies what it sees, .5 : .3 : .2 for a, b and c, with what it gives each place in a list."""

    def __init__(self, spec: ModelSpec) -> None:
        self._places = PLACES if spec.weights == "prejudiced" else np.ones(3)

    def log_likelihoods(self, questions: list[Question], batch_size: int) -> list[FloatArray]:
        seen = {"a": 0.5, "b": 0.3, "c": 0.2}
        return [
            log_softmax(np.log(self._places) + np.log([seen[option] for option in q.options])).astype(
                np.float32
            )
            for q in questions
        ]


@pytest.fixture(autouse=True)
def choosers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BUILTINS["chooser"], "prejudiced", registry.Entry(f"{__name__}:Prejudiced"))


def samples(n: int) -> list[Sample]:
    """Photos of different pixels, so that the lists about them are in different orders."""
    verdict = Verdict("uncertain", "a", 0.4, "open_set", "", route="rerank", candidates=("a", "b", "c"))
    scores = Scores(("a", "b", "c"), np.full((1, 3), 1 / 3, np.float32), np.ones(1, np.float32))
    return [
        Sample(
            sample_id=str(i),
            image=(image := Image.new("RGB", (4, 4), (i % 256, i // 256, 0))),
            regions=Sample.from_image("", image).regions,
            scores=scores,
            verdicts=(verdict,),
        )
        for i in range(n)
    ]


def look(weights: str, n: int, **options: object) -> tuple[Rerank, ListBias]:
    step = Rerank(model=ModelSpec("prejudiced", weights), self_test=False, **options)  # type: ignore[arg-type]
    bias = ListBias(step, np.random.default_rng(0))
    bias.look_at([step.case(asked_about) for sample in samples(n) for asked_about in step.requests(sample)])
    return step, bias


def test_what_each_place_gets_is_found_and_can_be_taken_off() -> None:
    step, bias = look("prejudiced", 100)
    [(n, prior)] = bias.prior().items()
    assert n == 3
    assert np.exp(prior) == pytest.approx(PLACES, rel=1e-4)
    [sample, *_] = samples(1)
    [asked_about] = step.requests(sample)
    [choice] = step.choices([step.case(asked_about)])
    fair = np.exp(step.strategy.without(prior, choice.log_likelihoods))
    assert dict(zip(choice.options, fair.tolist(), strict=True)) == pytest.approx(
        {"a": 0.5, "b": 0.3, "c": 0.2}, rel=1e-4
    )


def test_turning_the_list_turns_the_answers_of_a_prejudiced_model_and_of_no_other() -> None:
    """The first place gets 7 times what the last does: whatever stands there wins, unless a is second.

    In reverse the second stays: of the 6 orders, those with a second have b and c around it.
    """
    answers = {order: _answer(order) for order in ("abc", "acb", "bac", "bca", "cab", "cba")}
    flips = np.mean([answer != answers[order[::-1]] for order, answer in answers.items()])
    _, bias = look("prejudiced", 10_000)
    assert bias.flip_rate() == pytest.approx(flips, abs=3 * np.sqrt(flips * (1 - flips) / MOST_CASES) + 1e-9)
    assert look("fair", 400)[1].flip_rate() == 0


def _answer(order: str) -> str:
    weights = PLACES * [{"a": 0.5, "b": 0.3, "c": 0.2}[x] for x in order]
    return order[int(weights.argmax())]


def test_of_few_cases_or_no_lists_nothing_is_believed() -> None:
    _, bias = look("prejudiced", 4)
    assert len(bias.prior()) == 0 < FEWEST_CASES
    _, none = look("prejudiced", 100, mode="pointwise")
    assert (none.prior(), none.flip_rate()) == ({}, None)
