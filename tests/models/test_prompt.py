from __future__ import annotations

import pytest

from lmm_classifier.models.prompt import DEFAULT_DESCRIPTION, DEFAULT_PROMPT, render_prompt


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
