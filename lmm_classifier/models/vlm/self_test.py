"""Does a chooser say the same however it is asked? Tried on a few pictures before it is relied on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image

from lmm_classifier.models.base import Question
from lmm_classifier.models.loading import answering, load_chooser
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.models.vlm.answer_cache import rate
from lmm_classifier.models.vlm.strategies import Case, PromptStrategy
from lmm_classifier.types import Choice, FloatArray

log = logging.getLogger(__name__)

_OPTIONS = ("cat", "dog", "cow")  # as long as each other: none is likely for being short
_TOLERANCE = 0.05
"""Of a probability: wide enough for the rounding of bfloat16, which keeps 8 bits of a number."""
_SIDES = ((56, 56), (96, 64), (64, 120), (56, 84))  # px; of different length, so that batches are padded
_lock = threading.Lock()


def self_test_fault(
    spec: ModelSpec, strategy: PromptStrategy, batch_size: int, twin: ModelSpec | None
) -> str | None:
    """What is wrong with a chooser, in one line; None where nothing is. Found out once per process.

    A batch must say what its questions say one by one; passes that share their beginning, where a chooser
    does so, what whole ones say; and with a twin, a server what the same model says here.

    Args:
        spec: the chooser.
        strategy: how it is going to be asked.
        batch_size: how many pairs at once.
        twin: the same model here.

    Raises:
        ModelError: it, or the twin, cannot be opened or asked.
    """
    with _lock:
        return _tested(spec, strategy, batch_size, twin)


@lru_cache(maxsize=32)
def _tested(spec: ModelSpec, strategy: PromptStrategy, batch_size: int, twin: ModelSpec | None) -> str | None:
    questions = [question for case in _cases(strategy) for question in strategy.questions(case)]
    together = rate(spec, questions, batch_size)
    others = {"one by one": [rate(spec, [question], 1)[0] for question in questions]}
    chooser = load_chooser(spec)
    if hasattr(chooser, "plain_log_likelihoods"):
        with answering("chooser", spec):
            others["in whole passes"] = [chooser.plain_log_likelihoods(question) for question in questions]
    if twin is not None:
        others[f"by {twin.weights}"] = rate(twin, questions, batch_size)
    worst = {how: _difference(questions, together, values) for how, values in others.items()}
    log.info("chooser %s %s tested: %s", spec.family, spec.weights, worst)
    wrong = [f"{difference:.3f} {how}" for how, difference in worst.items() if not difference <= _TOLERANCE]
    if not wrong:
        return None
    return (
        f"{spec.family} {spec.weights} fails its self-test: probabilities of the same answers differ by "
        f"{' and '.join(wrong)}, more than {_TOLERANCE}; use another dtype or version, or set "
        "self_test: false"
    )


def _cases(strategy: PromptStrategy) -> list[Case]:
    """Pictures of noise, the same every time."""
    rng = np.random.default_rng(0)
    shown = [Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for w, h in _SIDES]
    exemplars = (
        {option: (shown[i],) for i, option in enumerate(_OPTIONS)} if strategy.mode == "pairwise" else {}
    )
    return [Case(image, _OPTIONS, exemplars) for image in shown]


def _difference(
    questions: Sequence[Question], one: Sequence[FloatArray], other: Sequence[FloatArray]
) -> float:
    """The largest difference of a probability among the options of a question."""
    return max(
        abs(a - b)
        for question, x, y in zip(questions, one, other, strict=True)
        for a, b in zip(
            Choice(question.options, x.copy()).probabilities.values(),
            Choice(question.options, y.copy()).probabilities.values(),
            strict=True,
        )
    )
