"""The way to ask by `/v1/systemone`, the typed decisions of `transformers serve`.

The server renders the question into the words of `models.vlm.prompts.asked`, in its form "letter" also for a
question of the form "text", and gives a probability per option from one forward pass. It encodes control
tokens in labels as plain text.
"""

from __future__ import annotations

from itertools import count
from typing import Any

from lmm_classifier.errors import ModelError
from lmm_classifier.models.base import Question
from lmm_classifier.models.vlm.openai_endpoint import (
    EncodedQuestion,
    EndpointStrategy,
    Probability,
    ResponsePart,
    logarithms,
    validated,
)
from lmm_classifier.models.vlm.prompts import LETTERS
from lmm_classifier.types import FloatArray

_MAX_PICTURES = 4  # what the route takes in one request
_NAME = "answer"  # of the one question in a request
_ROUNDING = 0.01  # how far from 1 the sum of the probabilities may lie; servers compute in reduced precision


class _Decision(ResponsePart):
    probabilities: dict[str, Probability] | None = None
    noul: Probability | None = None


class _Decisions(ResponsePart):
    answers: dict[str, _Decision]


def _takes(question: Question) -> bool:
    return 1 + len(question.exemplars) <= _MAX_PICTURES and len(question.options) <= len(LETTERS)


def _body(model: str, posed: EncodedQuestion) -> dict[str, Any]:
    question = posed.question
    typed: dict[str, Any] = {"type": "noul", "instructions": question.prompt}
    if question.form != "yes_no":
        typed = {**typed, "type": "choice", "criteria": dict.fromkeys(question.options)}
    places = _placeholders(question)
    texts = ("", *(text for text, _ in question.exemplars))
    return {
        "model": model,
        "state": "".join(text + place for text, place in zip(texts, places, strict=True)),
        "questions": {_NAME: typed},
        "assets": {
            place: {"type": "image", "format": "png", "data_base64": picture}
            for place, picture in zip(places, posed.pictures, strict=True)
        },
    }


def _placeholders(question: Question) -> list[str]:
    """What stands for each picture: strings that occur in no text of the question.

    The server puts pictures wherever it finds one, labels included. None can come about where two texts
    meet either: it starts with a "<" and ends with a ">", which it holds nowhere else.
    """
    texts = (question.prompt, *question.options, *(text for text, _ in question.exemplars))
    opening = next(o for o in (f"<picture-{n}-" for n in count()) if not any(o in text for text in texts))
    return [f"{opening}{i}>" for i in range(1 + len(question.exemplars))]


def _read(content: bytes, posed: EncodedQuestion) -> FloatArray | None:
    """Probabilities of the options among themselves.

    Raises:
        ModelError: no proper answer, or one about other options.
    """
    decision = validated(_Decisions, content).answers.get(_NAME)
    if posed.question.form == "yes_no":
        if decision is None or decision.noul is None:
            return None
        return logarithms([decision.noul, 1 - decision.noul])
    if decision is None or decision.probabilities is None:
        return None
    given = decision.probabilities
    if given.keys() != set(posed.question.options) or abs(sum(given.values()) - 1) > _ROUNDING:
        raise ModelError(f"the answer gives {len(given)} probabilities that are not those of the options")
    return logarithms([given[option] for option in posed.question.options])


SYSTEMONE = EndpointStrategy("typed decisions", "/systemone", _takes, _body, _read)
