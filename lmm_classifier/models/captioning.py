"""What the rest of the package may ask of a captioner. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

from PIL import Image

from lmm_classifier.errors import ModelError
from lmm_classifier.models.loading import answering, open_model
from lmm_classifier.models.spec import ModelSpec


class Captioner(Protocol):
    """A model that puts images into words. A captioner is constructed from a ModelSpec."""

    def captions(self, images: Sequence[Image.Image], prompt: str | None, max_length: int) -> list[str]:
        """Describe RGB images of any size: always the likeliest next token, so always in the same words.

        Args:
            images: in one forward pass, if memory allows.
            prompt: what the family makes of one: the words to begin with, or what to do; None: its own.
            max_length: at most so many new tokens.

        Returns:
            a text per image, which does not depend on the other images of the call.

        Raises:
            ModelError: the model failed.
        """
        ...


def load_captioner(spec: ModelSpec) -> Captioner:
    """The one captioner of this spec in the process, opened on first use.

    Raises:
        ConfigError: unknown family.
        ModelError: it cannot be opened.
    """
    return cast("Captioner", open_model("captioner", spec))


def captioned(
    spec: ModelSpec, images: Sequence[Image.Image], prompt: str | None, max_length: int, batch_size: int
) -> list[str]:
    """Ask the captioner of this spec, and take from it only what its protocol promises.

    Args:
        spec: the captioner.
        images: any number of them.
        prompt: as `Captioner.captions` has it.
        max_length: as `Captioner.captions` has it.
        batch_size: images per call of the captioner.

    Returns:
        a text per image, every run of white space in it a single blank.

    Raises:
        ModelError: it cannot be opened, failed, or gave something else.
    """
    captioner = load_captioner(spec)
    texts: list[str] = []
    for start in range(0, len(images), batch_size):
        part = images[start : start + batch_size]
        with answering("captioner", spec):
            answers = captioner.captions(part, prompt, max_length)
        if len(answers) != len(part) or not all(isinstance(answer, str) for answer in answers):
            raise ModelError(f"captioner {spec.family!r} must give one text per image")
        texts += [" ".join(answer.split()) for answer in answers]
    return texts


def refuse_float16(spec: ModelSpec) -> None:
    """Raise a ModelError if a spec asks for float16, in which captioners overflow to empty texts."""
    if spec.dtype == "float16":
        raise ModelError(f"captioner {spec.family!r} overflows in float16; use dtype bfloat16 or float32")
