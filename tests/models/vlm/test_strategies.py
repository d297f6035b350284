from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lmm_classifier.models.vlm.strategies import (
    BLANK,
    LONGEST_NAME,
    Case,
    PromptStrategy,
    default_template,
    rotations,
    shown_names,
)
from lmm_classifier.types import UNKNOWN, FloatArray

PHOTO, ROSE, TULIP, ASTER = (Image.new("RGB", (8, 8), colour) for colour in ("red", "pink", "gold", "blue"))
OPTIONS = ("rose", "tulip", UNKNOWN)
CASE = Case(PHOTO, OPTIONS, {"rose": (ROSE, ASTER), "tulip": (TULIP,)})


def values(*probabilities: float) -> FloatArray:
    return np.log(np.asarray(probabilities, np.float32))


def probabilities(strategy: PromptStrategy, case: Case, *rated: FloatArray) -> list[float]:
    return np.exp(strategy.log_probabilities(case, rated)).tolist()


def strategy(mode: str = "listwise", scoring: str = "likelihood", **more: int) -> PromptStrategy:
    return PromptStrategy(mode, scoring, default_template(mode, scoring), **more)  # type: ignore[arg-type]


class TestAList:
    def test_is_one_question(self) -> None:
        [question] = strategy().questions(Case(PHOTO, OPTIONS, due=7.0))
        assert (question.image, question.options, question.form, question.due) == (
            PHOTO,
            OPTIONS,
            "text",
            7.0,
        )
        assert "rose, tulip, unknown" in question.prompt
        assert probabilities(strategy(), CASE, values(0.2, 0.1, 0.1)) == pytest.approx([0.5, 0.25, 0.25])

    def test_under_letters(self) -> None:
        [question] = strategy(scoring="letter").questions(CASE)
        assert (question.form, question.options) == ("letter", OPTIONS)
        assert question.exemplars == (("rose:", ROSE), ("rose:", ASTER), ("tulip:", TULIP))

    def test_in_several_orders_is_averaged(self) -> None:
        """A model that gives the first place .8 whatever stands there says nothing."""
        turned = strategy(permutations=3)
        assert [q.options for q in turned.questions(CASE)] == [
            ("rose", "tulip", UNKNOWN),
            ("tulip", UNKNOWN, "rose"),
            (UNKNOWN, "rose", "tulip"),
        ]
        first = values(0.8, 0.1, 0.1)
        assert probabilities(turned, CASE, first, first, first) == pytest.approx([1 / 3] * 3)
        # for rose whatever its place, by hand: rose .8 * .1 * .8, tulip .1 * .8 * .1, unknown .1 * .1 * .1
        found = probabilities(turned, CASE, first, values(0.8, 0.1, 0.1), values(0.1, 0.8, 0.1))
        roots = np.cbrt([0.8 * 0.1 * 0.8, 0.1 * 0.8 * 0.1, 0.1 * 0.1 * 0.1])
        assert found == pytest.approx(roots / roots.sum())

    def test_has_no_more_orders_than_options(self) -> None:
        assert len(strategy(permutations=20).questions(CASE)) == 3
        assert rotations(3) == [(0, 1, 2), (1, 2, 0), (2, 0, 1)]

    def test_normalised_takes_off_what_a_blank_image_gets_and_counts_per_byte(self) -> None:
        way = strategy(scoring="normalised")
        photo, blank = way.questions(Case(PHOTO, ("a", "abcd")))
        assert (photo.image, blank.image) == (PHOTO, BLANK)
        assert photo.prompt == blank.prompt
        found = probabilities(way, Case(PHOTO, ("a", "abcd")), values(0.5, 0.04), values(0.25, 0.0025))
        assert found == pytest.approx([0.5, 0.5])  # twice as likely in 1 byte, 16 times in 4

    def test_less_what_its_places_get(self) -> None:
        """By hand; with as many orders as options, each has been in every place."""
        prior = np.log([0.6, 0.2, 0.2]).tolist()
        biased = values(0.6, 0.2, 0.2)
        assert np.exp(strategy().without(prior, biased)) == pytest.approx([1 / 3] * 3)
        fair = values(0.5, 0.3, 0.2)
        assert np.exp(strategy(permutations=3).without(prior, fair)) == pytest.approx([0.5, 0.3, 0.2])
        # of two orders, option i stood at i and i - 1: weights 1 / sqrt(prior[i] * prior[i - 1])
        weights = np.asarray([0.5, 0.3, 0.2]) / np.sqrt([0.6 * 0.2, 0.6 * 0.2, 0.2 * 0.2])
        found = np.exp(strategy(permutations=2).without(prior, fair))
        assert found == pytest.approx(weights / weights.sum(), rel=1e-5)


class TestOneByOne:
    def test_each_candidate_is_asked_about_and_none_of_them_is_unknown(self) -> None:
        way = strategy("pointwise")
        questions = way.questions(CASE)
        assert [q.prompt for q in questions] == [
            f"Does the label {x} fit the image?" for x in ("rose", "tulip")
        ]
        assert all((q.options, q.form, q.exemplars) == (("Yes", "No"), "yes_no", ()) for q in questions)
        # odds 3 of a rose, 1 of a tulip; "no" to both is unknown: 3 : 1 : 1
        found = probabilities(way, CASE, values(0.75, 0.25), values(0.5, 0.5))
        assert found == pytest.approx([0.6, 0.2, 0.2])

    def test_pairs_are_averaged_over_the_photos_of_a_candidate(self) -> None:
        way = strategy("pairwise")
        shown = [q.exemplars for q in way.questions(CASE)]
        assert shown == [(("", ROSE),), (("", ASTER),), (("", TULIP),)]
        # odds 8 and 2 of a rose: 4; a tulip 1
        found = probabilities(way, CASE, values(8 / 9, 1 / 9), values(2 / 3, 1 / 3), values(0.5, 0.5))
        assert found == pytest.approx([4 / 6, 1 / 6, 1 / 6])


def test_names_are_one_line_of_text_and_distinct() -> None:
    labels = (
        "a\nb",
        "a b",
        "x" * 10_000,
        "x" * 9_999,
        "\x00\x1b",
        "",
        "tab\there",
        "\udc80surrogate",
        "{candidates}",
        "雛菊",
    )
    names = shown_names(labels)
    assert list(names) == list(labels)
    assert len(set(names.values())) == len(labels)
    for name in names.values():
        assert name
        assert len(name) <= LONGEST_NAME + len(" (2)")
        assert len(name.splitlines()) == 1
        name.encode()  # a lone surrogate is no text
    assert names["a\nb"] == "a b"
    assert names["a b"] == "a b (2)"
    assert names["tab\there"] == "tab here"
    assert names["{candidates}"] == "{candidates}"
    assert names["雛菊"] == "雛菊"
