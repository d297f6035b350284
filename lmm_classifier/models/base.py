"""What the rest of the package may ask of encoders and choosers, and what these are given. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from PIL import Image

from lmm_classifier.deprecation import moved_name
from lmm_classifier.errors import ModelError
from lmm_classifier.types import EncoderContract, FloatArray


class Encoder(Protocol):
    """Images to unit vectors. An encoder is constructed from a ModelSpec.

    It may have an attribute `input_size`: px to which its preprocessing scales the shorter side of a photo at
    most, or None where it needs every pixel. A JPEG is then decoded at a reduced scale that is not below it.
    """

    @property
    def contract(self) -> EncoderContract:
        """Everything that decides the vectors."""
        ...

    def encode(self, images: Sequence[Image.Image]) -> FloatArray:
        """Encode RGB images of any size.

        Returns:
            float32 (len(images), contract.dim), each row of L2 norm 1. An image's vector does not
            depend on the other images of the call beyond rounding.

        Raises:
            ModelError: the model failed.
        """
        ...


@runtime_checkable
class RawEncoder(Encoder, Protocol):
    """An encoder that also tells what its model gives before that is normalised."""

    def encode_raw(self, images: Sequence[Image.Image]) -> FloatArray:
        """As `encode`, with rows of any length in the direction of those."""
        ...


@runtime_checkable
class TextEncoder(Encoder, Protocol):
    """An encoder that puts texts into the space of its images, so that a name can stand for examples."""

    def encode_text(self, texts: Sequence[str]) -> FloatArray:
        """Encode texts; what goes beyond the model's length is cut off.

        The text tower is opened by the first call.

        Returns:
            float32 (len(texts), contract.dim), each row of L2 norm 1.

        Raises:
            ModelError: the weights hold no text tower, or it failed.
        """
        ...


AnswerForm = Literal["text", "letter", "yes_no"]


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """One image, one prompt, and the answers to compare.

    Attributes:
        image: what is asked about; shown first.
        prompt: the question; `models.vlm.prompts.asked` gives all that is said after the image.
        options: answers to compare, distinct.
        form: how an option is given: by its own text; by the letter it is listed under, the prompt's list
            and closing line being added; or, of the options "Yes" and "No", by that word.
        exemplars: pictures shown between image and prompt, each after the text that says what it is.
        due: `time.monotonic` from which nobody waits for the answer any more; None: whenever it comes.
    """

    image: Image.Image
    prompt: str
    options: tuple[str, ...]
    form: AnswerForm = "text"
    exemplars: tuple[tuple[str, Image.Image], ...] = ()
    due: float | None = None


class Chooser(Protocol):
    """A vision-language model that rates given answers. A chooser is constructed from a ModelSpec.

    Its class may have an attribute `input_size`, as an encoder may: a chooser is opened late.
    """

    def log_likelihoods(self, questions: Sequence[Question], batch_size: int) -> list[FloatArray]:
        """Rate every option of every question, `batch_size` (question, option) pairs per forward pass.

        Returns:
            per question, float32 (len(options),), natural logarithms, given image, exemplars and prompt: in
            the form "text", of the likelihood of the option, whole and followed by the end of the answer; in
            the others, of the probability that the answer begins with the option's letter or word.

        Raises:
            ModelError: the model failed.
        """
        ...


def input_size_of(model: object) -> int | None:
    """The `input_size` of an encoder or a class of choosers; None, as of those that do not say: all pixels.

    Raises:
        ModelError: it is no number of pixels.
    """
    size = getattr(model, "input_size", None)
    if size is None or (isinstance(size, int) and size >= 1):
        return size
    raise ModelError(f"`input_size` must be a positive number of pixels or None, got {size!r}")


def __getattr__(name: str) -> Any:
    return moved_name(__name__, name)
