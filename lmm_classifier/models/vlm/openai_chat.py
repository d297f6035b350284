"""Ways to ask by `/v1/chat/completions`: the logarithms of the first token, and the text of the answer.

What is said goes through the server's own chat template: a control token in a label ("<|im_end|>") is the
server's to disarm.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from pydantic import Field

from lmm_classifier.errors import ModelError
from lmm_classifier.models.base import Question
from lmm_classifier.models.vlm.openai_endpoint import (
    EncodedQuestion,
    EndpointStrategy,
    Logprob,
    ResponsePart,
    logarithms,
    validated,
)
from lmm_classifier.text import shown
from lmm_classifier.types import FloatArray

_PATH = "/chat/completions"
_TOP = 20
"""Likeliest first tokens asked for: the most that the API has, and what vLLM gives unless told otherwise."""
_NOT_KNOWN = -9999.0
"""The API's word for "very unlikely", and what vLLM makes of minus infinity: no measured value."""
_SURE = 0.9
"""By convention, the probability of an answer that was given as text: text says which, not how sure.

The other options share the rest equally. `calibrate --photos` weighs it by how often such answers are right.
"""
_ROOM = 8  # tokens beyond the longest answer: the end of the turn, and a blank or two


class _Top(ResponsePart):
    token: str
    logprob: Logprob


class _Token(ResponsePart):
    top_logprobs: tuple[_Top, ...]


class _Logprobs(ResponsePart):
    content: tuple[_Token, ...] | None = None


class _Message(ResponsePart):
    content: str | None = None


class _Choice(ResponsePart):
    message: _Message
    logprobs: _Logprobs | None = None


class _Completion(ResponsePart):
    choices: Annotated[tuple[_Choice, ...], Field(min_length=1)]


def _messages(posed: EncodedQuestion) -> list[dict[str, Any]]:
    """One turn: the picture that is asked about, each exemplar after its text, then all that is said."""
    texts = ("", *(text for text, _ in posed.question.exemplars))
    content: list[dict[str, Any]] = []
    for text, picture in zip(texts, posed.pictures, strict=True):
        if text:
            content.append({"type": "text", "text": text})
        content.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}})
    content.append({"type": "text", "text": posed.text})
    return [{"role": "user", "content": content}]


def _max_tokens(posed: EncodedQuestion) -> int:
    """Enough for the longest answer: a token is at least a byte of it."""
    if posed.question.form != "text":
        return 1
    return max(len(answer.encode("utf-8", "replace")) for answer in posed.answers) + _ROOM


def _plain(model: str, posed: EncodedQuestion) -> dict[str, Any]:
    return {
        "model": model,
        "messages": _messages(posed),
        "temperature": 0,
        "max_tokens": _max_tokens(posed),
    }


def _constrained(model: str, posed: EncodedQuestion) -> dict[str, Any]:
    """With vLLM's constraint under its name, and under that before version 0.12; each ignores the other."""
    choice = list(posed.answers)
    return {**_plain(model, posed), "structured_outputs": {"choice": choice}, "guided_choice": choice}


def _with_logprobs(model: str, posed: EncodedQuestion) -> dict[str, Any]:
    return {**_plain(model, posed), "logprobs": True, "top_logprobs": _TOP}


def _read_logprobs(content: bytes, posed: EncodedQuestion) -> FloatArray | None:
    """Per option, the probability that the answer begins with its letter or word, blanks around it aside.

    An answer that is not among the likeliest tokens gets the least of their logarithms. That is an upper
    bound: it is at most as likely as the least likely one that the server names.

    Raises:
        ModelError: no proper answer, or none of the options is among the likeliest.
    """
    logprobs = validated(_Completion, content).choices[0].logprobs
    if logprobs is None or not logprobs.content:
        return None
    known = [top for top in logprobs.content[0].top_logprobs if top.logprob > _NOT_KNOWN]
    if not known:
        return None
    found = [[top.logprob for top in known if top.token.strip() == answer] for answer in posed.answers]
    if not any(found):
        best = max(known, key=lambda top: top.logprob)
        raise ModelError(
            f"none of the answers {shown(', '.join(posed.answers))} is among the {len(known)} likeliest "
            f"first tokens; the model would say {shown(best.token)!r}"
        )
    bound = min(top.logprob for top in known)
    values = [np.logaddexp.reduce(some) if some else bound for some in found]
    return np.minimum(np.asarray(values, np.float32), 0)


def _read_text(content: bytes, posed: EncodedQuestion) -> FloatArray:
    """Which answer was given, and by convention how sure.

    Raises:
        ModelError: no proper answer, or one that is none of the options.
    """
    said = (validated(_Completion, content).choices[0].message.content or "").strip()
    fits = [answer.strip() == said for answer in posed.answers]
    if fits.count(True) != 1:
        raise ModelError(f"the model answered {shown(said)!r}, which is none of the options")
    others = (1 - _SURE) / max(len(fits) - 1, 1)
    return logarithms([_SURE if fit else others for fit in fits])


def _has_one_token_answers(question: Question) -> bool:
    return question.form != "text"


def _any(question: Question) -> bool:  # noqa: ARG001
    return True


LOGPROBS = EndpointStrategy(
    "the logprobs of its first token", _PATH, _has_one_token_answers, _with_logprobs, _read_logprobs
)
CONSTRAINED = EndpointStrategy("a text held to the options", _PATH, _any, _constrained, _read_text)
TEXT = EndpointStrategy("a text", _PATH, _any, _plain, _read_text)
