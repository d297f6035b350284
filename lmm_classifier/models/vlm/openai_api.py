"""A vision-language model behind an OpenAI-compatible server: vLLM, SGLang, `transformers serve`."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import ClassVar

from lmm_classifier.errors import ConfigError, FetchError, ModelError, ModelUnavailableError, OutOfTimeError
from lmm_classifier.fetch import FetchLimits, bearer, check_url, post_json
from lmm_classifier.models.base import AnswerForm, Question
from lmm_classifier.models.runtime.options import refuse_untaken
from lmm_classifier.models.runtime.resizing import MAX_PIXELS, side_of
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.models.vlm.openai_chat import CONSTRAINED, LOGPROBS, TEXT
from lmm_classifier.models.vlm.openai_endpoint import EncodedQuestion, EndpointStrategy, posed
from lmm_classifier.models.vlm.openai_systemone import SYSTEMONE
from lmm_classifier.text import shown
from lmm_classifier.types import FloatArray

log = logging.getLogger(__name__)

_KEY = "OPENAI_API_KEY"
_WAYS = (LOGPROBS, SYSTEMONE, CONSTRAINED, TEXT)
LIMITS = FetchLimits(silence_s=30.0, total_s=60.0, max_bytes=2**20, redirects=0)
"""Of one question. No byte comes while the model thinks: the silence is longer than for files."""
_REFUSALS = frozenset({400, 404, 405, 422, 501})
"""A server's ways to say that it does not know this endpoint, or not this field."""
DUE_S = 0.01  # a time limit of the system may end this much early
_HINTS: dict[int | str, str] = {
    "unreachable": "; does the server run?",
    401: f"; set {_KEY}",
    403: f"; set {_KEY}",
    404: "; is it the address, and the name, of a model that is served there?",
    429: "; ask fewer questions at once (max_batch_size)",
}

_Kind = tuple[AnswerForm, tuple[EndpointStrategy, ...]]  # questions that are asked alike


class OpenAIChooser:
    """Rates options by asking a server.

    `weights` are its address and the model's name there: "http://localhost:8000/v1#Qwen/Qwen2-VL-7B-Instruct".
    Of `_WAYS` the first that the server knows is taken, and kept for questions of the same form. A way that
    was kept and is refused fails the question; the next one finds a way anew. The key for the server, if it
    wants one, is in the environment variable OPENAI_API_KEY.

    Args of the constructor, beside the spec:
        limits: of each question, all requests and retries for it together.
        ways: what to try, in this order.
    """

    input_size: ClassVar = side_of(MAX_PIXELS)

    def __init__(
        self, spec: ModelSpec, limits: FetchLimits = LIMITS, ways: Sequence[EndpointStrategy] = _WAYS
    ) -> None:
        refuse_untaken(spec, "max_pixels")
        for name, value, default in (
            ("revision", spec.revision, "main"),
            ("device", spec.device, "auto"),
            ("dtype", spec.dtype, "auto"),
        ):
            if value != default:
                raise ModelError(f"'openai_api': the server sets {name}; remove `{name}` from the settings")
        self._address, self._model = _place(spec.weights)
        self._max_pixels = spec.max_pixels or MAX_PIXELS
        self._limits, self._ways = limits, tuple(ways)
        self._kept: dict[_Kind, EndpointStrategy] = {}
        self._lock = threading.Lock()

    def log_likelihoods(self, questions: Sequence[Question], batch_size: int) -> list[FloatArray]:
        """As `Chooser` has it, with at most `batch_size` requests at once.

        In the form "text" these are not likelihoods of texts but, as in the others, probabilities of the
        options: `transformers serve` weighs them as letters, and a text says which alone.

        Raises:
            OutOfTimeError: a question was due before its answer came.
            ModelError: the server does not answer, or not as documented.
            ConfigError: the options of a question do not suit its form.
        """
        # The first question of a kind goes alone: it finds the way that the others take.
        first = {self._kind(question): i for i, question in reversed(list(enumerate(questions)))}
        alone = sorted(i for kind, i in first.items() if kind not in self._kept)
        rated = {i: self._rated(questions[i]) for i in alone}
        rest = [i for i in range(len(questions)) if i not in rated]
        if rest:
            with ThreadPoolExecutor(min(batch_size, len(rest)), "openai_api") as pool:
                rated |= zip(rest, pool.map(self._rated, [questions[i] for i in rest]), strict=True)
        return [rated[i] for i in range(len(questions))]

    def _kind(self, question: Question) -> _Kind:
        return question.form, tuple(way for way in self._ways if way.takes(question))

    def _rated(self, question: Question) -> FloatArray:
        until = time.monotonic() + self._limits.total_s
        kind, ready = self._kind(question), posed(question, self._max_pixels)
        kept = self._kept.get(kind)
        refusals: list[str] = []
        for way in (kept,) if kept else kind[1]:
            try:
                values = way.read(self._post(way, ready, until), ready)
                refusal = "its answer has none"
            except FetchError as error:
                values, refusal = None, self._told(error)
            except OutOfTimeError:
                raise
            except ModelError as error:
                before = f" (refused before: {'; '.join(refusals)})" if refusals else ""
                message = f"server {self._address}, asked for {way.name}: {error}{before}"
                raise type(error)(message) from error
            if values is not None:
                self._keep(kind, way)
                return values
            refusals.append(f"{way.name}: {refusal}")
        self._kept.pop(kind, None)
        raise ModelError(
            f"server {self._address} refuses a question in the form {question.form!r}; asked for "
            + "; for ".join(refusals)
        )

    def _post(self, way: EndpointStrategy, ready: EncodedQuestion, until: float) -> bytes:
        """The server's answer.

        Raises:
            FetchError: the server refuses to be asked like this.
            OutOfTimeError: the question was due before.
            ModelError: there is no answer, or no key that could be sent.
        """
        due = ready.question.due
        end = until if due is None else min(until, due)
        left = end - time.monotonic()
        try:
            if left <= 0:
                raise FetchError("timeout", "no time is left to ask")
            limits, value = replace(self._limits, total_s=left), way.body(self._model, ready)
            return post_json(self._address + way.path, value, limits=limits, headers=_authorization())
        except FetchError as error:
            if error.status in _REFUSALS:
                raise
            if due is not None and time.monotonic() > due - DUE_S:
                raise OutOfTimeError(f"no answer by the time it was due: {self._told(error)}") from error
            gone = error.code in {"unreachable", "timeout"}  # another question would fare no better
            raise (ModelUnavailableError if gone else ModelError)(self._told(error)) from error

    def _told(self, error: FetchError) -> str:
        """An error in one line, with what the server said, and without the key if it said that."""
        said = shown(error.said.replace(os.environ.get(_KEY) or "\0", "***"))
        late = f" ({self._limits.total_s:g} s at most)" if error.code == "timeout" else ""
        return error.message + late + (said and f": {said}") + _HINTS.get(error.status or error.code, "")

    def _keep(self, kind: _Kind, way: EndpointStrategy) -> None:
        with self._lock:
            if self._kept.get(kind) is not way:
                log.info("server %s: asked for %s in the form %r", self._address, way.name, kind[0])
            self._kept[kind] = way


def _place(weights: str) -> tuple[str, str]:
    """Address of the API, as OpenAI's own clients take it, and name of the model."""
    address, _, model = weights.partition("#")
    address = address.rstrip("/")
    problem = "" if model else "it names no model"
    try:
        check_url(address)
    except FetchError as error:
        problem = error.message
    if "?" in address:
        problem = "the address must not hold a query"
    if problem:
        raise ModelError(
            "'openai_api' takes weights like 'http://localhost:8000/v1#name-of-model', "
            f"got {shown(weights)!r}: {problem}"
        )
    return address, model


def _authorization() -> dict[str, str]:
    try:
        return bearer(os.environ.get(_KEY, ""), _KEY)
    except ConfigError as error:
        raise ModelError(str(error)) from error
