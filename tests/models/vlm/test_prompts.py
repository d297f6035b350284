from __future__ import annotations

import pytest

from lmm_classifier.errors import ConfigError
from lmm_classifier.models.vlm.prompts import (
    DEFAULT_DESCRIPTION,
    DEFAULT_PROMPT,
    YES_NO,
    answers_of,
    asked,
    render_prompt,
)
from naive_qwen import with_decisions


def test_the_default_prompt_names_every_candidate_in_the_given_order() -> None:
    assert render_prompt(DEFAULT_PROMPT, ["rose", "daisy", "unknown"]) == (
        "Choose the label that fits the image best: rose, daisy, unknown. Answer with the label only."
    )


def test_both_placeholders_are_filled_wherever_they_stand() -> None:
    template = "{candidates} | {image_description} | {candidates}"
    assert render_prompt(template, ["a", "b"], "a photo") == "a, b | a photo | a, b"


def test_a_template_may_leave_the_description_out() -> None:
    assert render_prompt("One of: {candidates}", ["a"], "a photo") == "One of: a"


@pytest.mark.parametrize(
    "label",
    [
        "{}",
        "{0}",
        "{0.__class__}",
        "{braces}",
        "}{",
        "{{",
        "two\nlines\r\n",
        r"\1 \g<0> \n",
        "$candidates %s %(candidates)s",
        "\u202eright to left\u200f",
        "<|im_end|>",
        "",
    ],
)
def test_a_label_is_inserted_as_it_stands(label: str) -> None:
    assert render_prompt("Is it {candidates}?", [label, "x"]) == "Is it " + label + ", x?"


def test_a_placeholder_in_a_label_or_in_the_description_is_not_filled_in() -> None:
    template = "{image_description}: {candidates}"
    rendered = render_prompt(template, ["{image_description}", "{candidates}"], "{candidates}")
    assert rendered == "{candidates}: {image_description}, {candidates}"


@pytest.mark.parametrize("template", ["{candidates} {", "{candidates} }", "{candidates} {x} {{y}} {}"])
def test_stray_braces_of_a_template_stay(template: str) -> None:
    assert render_prompt(template, ["a"]) == template.replace("{candidates}", "a")


def test_the_default_description_reads_as_a_noun() -> None:
    assert DEFAULT_DESCRIPTION == "the image"


@with_decisions
def test_the_forms_of_an_answer_read_as_transformers_decision_pipeline_has_them() -> None:
    """So that a letter is rated after the same words here, by that pipeline, and by a server's route."""
    from transformers.decision import DecisionConfig
    from transformers.decision.template_utils import DECISION_PROMPT, _compile_jinja_template
    from transformers.decision.template_utils import Question as DecisionQuestion

    labels = ("rose {x}", "tulip", "oxeye\tdaisy")
    letter = {"type": "choice", "instructions": "Which {label}?", "criteria": dict.fromkeys(labels)}
    yes_no = {"type": "noul", "instructions": "Is it a rose?"}
    prompt = _compile_jinja_template(DECISION_PROMPT)
    for question, options, form in ((letter, labels, "letter"), (yes_no, YES_NO, "yes_no")):
        theirs = DecisionQuestion.from_request("label", question, DecisionConfig())
        assert prompt.render(state="", question=theirs) == asked(question["instructions"], options, form)


def test_options_that_the_form_has_no_name_for_are_refused() -> None:
    with pytest.raises(ConfigError, match="27 options"):
        asked("Which?", [str(i) for i in range(27)], "letter")
    with pytest.raises(ConfigError, match="yes or no"):
        asked("Is it?", ("maybe", "No"), "yes_no")
    assert answers_of(("b", "a"), "letter") == ("A", "B")
    assert answers_of(("b", "a"), "text") == ("b", "a")
