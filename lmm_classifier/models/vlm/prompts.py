"""The question put to a vision-language model. No torch here: steps and training scripts share it."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from lmm_classifier.errors import ConfigError
from lmm_classifier.models.base import AnswerForm

DEFAULT_PROMPT = (
    "Choose the label that fits {image_description} best: {candidates}. Answer with the label only."
)
DEFAULT_DESCRIPTION = "the image"
_PLACEHOLDERS = ("image_description", "candidates", "candidate")
_PLACEHOLDER = re.compile("{(" + "|".join(_PLACEHOLDERS) + ")}")


def render_prompt(template: str, candidates: Sequence[str], description: str = DEFAULT_DESCRIPTION) -> str:
    """Fill the documented placeholders in one pass.

    Labels are inserted literally: braces, newlines or a placeholder inside a label, and stray
    braces in the template, stay as they are (`str.format` would raise or substitute twice).
    """
    names = ", ".join(candidates)
    values = {"image_description": description, "candidates": names, "candidate": names}
    return _PLACEHOLDER.sub(lambda match: values[match.group(1)], template)


LETTERS = tuple(string.ascii_uppercase)
YES_NO = ("Yes", "No")


def asked(prompt: str, options: Sequence[str], form: AnswerForm) -> str:
    """All that is said after the image: the prompt, and in the forms that need it, how to answer.

    In the forms "letter" and "yes_no" it is word for word what transformers' decision pipeline, and the route
    /v1/systemone of its server, make of a state that is the image, of these instructions and options.

    Raises:
        ConfigError: more options than letters, or other options than Yes and No.
    """
    if form == "text":
        return prompt
    lines = ["", "", prompt]
    if form == "letter":
        letters = _letters_of(options)
        lines += [f"{letter}. {option}" for letter, option in zip(letters, options, strict=True)]
        lines.append(f"Answer with the letter of the option that fits best (A to {letters[-1]}) only.")
    elif tuple(options) == YES_NO:
        lines.append("Answer Yes or No only.")
    else:
        raise ConfigError(f"a question to be answered by yes or no has the options {list(options)}")
    return "\n".join(lines)


def _letters_of(options: Sequence[str]) -> tuple[str, ...]:
    """The letter of each option.

    Raises:
        ConfigError: there are not so many, or no option.
    """
    if not 1 <= len(options) <= len(LETTERS):
        raise ConfigError(f"{len(options)} options cannot be named by letters; there are {len(LETTERS)}")
    return LETTERS[: len(options)]


def answers_of(options: Sequence[str], form: AnswerForm) -> tuple[str, ...]:
    """What the model is to say for each option; raises as `_letters_of`."""
    return _letters_of(options) if form == "letter" else tuple(options)
