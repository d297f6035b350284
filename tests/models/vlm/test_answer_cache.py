from __future__ import annotations

import logging
import sqlite3
import threading
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from lmm_classifier import registry
from lmm_classifier.errors import ModelError
from lmm_classifier.models.base import Question
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.models.vlm.answer_cache import rate
from lmm_classifier.types import FloatArray

PHOTO = Image.new("RGB", (8, 8), "red")
ROSE = Question(PHOTO, "Which?", ("rose", "tulip"))


class Counting:
    """Says something else of every question, and how often it was asked."""

    asked: ClassVar[list[Question]] = []

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec

    def log_likelihoods(self, questions: list[Question], batch_size: int) -> list[FloatArray]:
        if self.spec.revision == "broken":
            raise ModelError("out of order")
        self.asked.extend(questions)
        start = len(self.asked)
        return [
            -np.arange(1, len(q.options) + 1, dtype=np.float32) * (start + i) for i, q in enumerate(questions)
        ]


@pytest.fixture(autouse=True)
def counting(monkeypatch: pytest.MonkeyPatch) -> list[Question]:
    monkeypatch.setitem(registry.BUILTINS["chooser"], "counting", registry.Entry(f"{__name__}:Counting"))
    Counting.asked.clear()
    return Counting.asked


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    return tmp_path / "new" / "answers.sqlite"


def ask(*questions: Question, memory: Path | None, revision: str = "main") -> list[list[float]]:
    spec = ModelSpec("counting", revision=revision)
    return [values.tolist() for values in rate(spec, questions, 4, memory)]


class TestMemory:
    def test_nothing_is_asked_twice(self, memory: Path, counting: list[Question]) -> None:
        other = Question(PHOTO, "Which?", ("aster", "lily", "rose"))
        [first] = ask(ROSE, memory=memory)
        both = ask(other, ROSE, memory=memory)
        assert both[1] == first
        assert [q.options for q in counting] == [ROSE.options, other.options]
        again = Question(Image.new("RGB", (8, 8), "red"), "Which?", ("rose", "tulip"))
        assert ask(again, other, memory=memory) == both[::-1]
        assert len(counting) == 2

    @pytest.mark.parametrize(
        "other",
        [
            Question(Image.new("RGB", (8, 8), (254, 0, 0)), "Which?", ("rose", "tulip")),
            Question(Image.new("RGB", (4, 16), "red"), "Which?", ("rose", "tulip")),
            Question(PHOTO, "Which one?", ("rose", "tulip")),
            Question(PHOTO, "Which?", ("tulip", "rose")),
            Question(PHOTO, "Which?", ("rose", "tulip"), "letter"),
            Question(PHOTO, "Which?", ("rose", "tulip"), exemplars=(("", PHOTO),)),
        ],
        ids=["pixel", "size", "prompt", "order", "form", "exemplar"],
    )
    def test_another_question_is_another(
        self, memory: Path, counting: list[Question], other: Question
    ) -> None:
        assert ask(ROSE, memory=memory) != ask(other, memory=memory)
        assert len(counting) == 2

    def test_another_model_is_another(self, memory: Path, counting: list[Question]) -> None:
        assert ask(ROSE, memory=memory) != ask(ROSE, memory=memory, revision="v2")
        assert len(counting) == 2

    def test_failures_are_not_remembered(self, memory: Path) -> None:
        with pytest.raises(ModelError, match="out of order"):
            ask(ROSE, memory=memory, revision="broken")
        with sqlite3.connect(memory) as database:
            assert database.execute("SELECT count(*) FROM answers").fetchone() == (0,)

    @pytest.mark.parametrize("damage", ["not a database", "a folder", "foreign values"])
    def test_that_is_damaged_costs_a_question_and_a_warning_and_no_answer(
        self, memory: Path, counting: list[Question], caplog: pytest.LogCaptureFixture, damage: str
    ) -> None:
        ask(ROSE, memory=memory)
        if damage == "foreign values":
            with sqlite3.connect(memory) as database:
                database.execute("UPDATE answers SET answer = ?", (np.asarray([np.nan, 1], "<f4").tobytes(),))
        else:
            for file in memory.parent.iterdir():
                file.unlink()
            memory.write_bytes(b"no database " * 1000) if damage == "not a database" else memory.mkdir()
        with caplog.at_level(logging.WARNING):
            [values] = ask(ROSE, memory=memory)
        assert values == [-2, -4]  # asked anew
        assert bool(caplog.records) == (damage != "foreign values")

    def test_threads_share_it(self, memory: Path, counting: list[Question]) -> None:
        questions = [Question(PHOTO, str(i % 10), ("rose", "tulip")) for i in range(80)]
        threads = [threading.Thread(target=ask, args=(q,), kwargs={"memory": memory}) for q in questions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        asked = len(counting)
        ask(*questions[:10], memory=memory)
        assert len(counting) == asked
