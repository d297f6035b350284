"""A way to put a question to a server of models: what is sent, and how its answer is read. No torch here."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lmm_classifier.errors import ModelError
from lmm_classifier.models.base import Question
from lmm_classifier.models.runtime.resizing import MAX_PIXELS, shrunk, widened
from lmm_classifier.models.vlm.prompts import answers_of, asked
from lmm_classifier.text import shown
from lmm_classifier.types import FloatArray

_MAX_ASPECT_RATIO = 200  # servers pass photos to image processors of this bound, and fail on longer slivers

_Validated = TypeVar("_Validated", bound="ResponsePart")
Logprob = Annotated[float, Field(le=1e-3, allow_inf_nan=False)]
"""At most 0 but for rounding: reduced precision puts a certain token's a little above."""
Probability = Annotated[float, Field(ge=0, le=1 + 1e-3, allow_inf_nan=False)]


class ResponsePart(BaseModel):
    """A part of an answer: what we read of it, checked; the rest is left alone."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


@dataclass(frozen=True, slots=True, eq=False)
class EncodedQuestion:
    """A question ready to be sent.

    Attributes:
        question: as it was asked.
        text: all that is said after the pictures.
        answers: what the model is to say for each option.
        pictures: PNG in base64: what is asked about, then the exemplars.
    """

    question: Question
    text: str
    answers: tuple[str, ...]
    pictures: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EndpointStrategy:
    """A way to ask.

    Attributes:
        name: for people.
        path: of the endpoint, behind the address of the API.
        takes: whether a question can be asked like this.
        body: (model's name, question) -> what is posted, as JSON.
        read: (answer, question) -> float32 (len(options),), natural logarithms of probabilities; None where
            the answer is a proper one but lacks what this way is about. Raises ModelError where it is no
            proper one, or says something else than was asked.
    """

    name: str
    path: str
    takes: Callable[[Question], bool]
    body: Callable[[str, EncodedQuestion], dict[str, Any]]
    read: Callable[[bytes, EncodedQuestion], FloatArray | None]


def posed(question: Question, max_pixels: int = MAX_PIXELS) -> EncodedQuestion:
    """The question with its texts made and its pictures encoded, of about `max_pixels` each at most.

    Raises:
        ConfigError: its options do not suit its form.
    """
    images = (question.image, *(image for _, image in question.exemplars))
    return EncodedQuestion(
        question,
        asked(question.prompt, question.options, question.form),
        answers_of(question.options, question.form),
        tuple(_png(image, max_pixels) for image in images),
    )


def _png(image: Image.Image, max_pixels: int) -> str:
    """Without loss, so that the server sees the pixels that a model on this machine would."""
    file = io.BytesIO()
    affordable = widened(shrunk(image, max_pixels), _MAX_ASPECT_RATIO)
    # The fastest level: time matters more than a tenth of the size. A colour profile stays at home.
    affordable.save(file, "PNG", compress_level=1, icc_profile=None)
    return base64.b64encode(file.getvalue()).decode()


def validated(kind: type[_Validated], content: bytes) -> _Validated:
    """An answer as what the API documents.

    Raises:
        ModelError: it is something else.
    """
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "answer"
        raise ModelError(
            f"the answer is not as its API documents it: {shown(place)}: {first['msg']}"
        ) from None


def logarithms(probabilities: list[float]) -> FloatArray:
    """Natural logarithms, float32, of probabilities that may have been rounded to 0.

    Such a one counts as the smallest normal float32, 1.2e-38: a softmax gives nothing reliable below.
    """
    least = float(np.finfo(np.float32).tiny)
    return np.asarray([min(math.log(max(p, least)), 0.0) for p in probabilities], np.float32)
