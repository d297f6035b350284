"""What the rest of the package may ask of a classifier with classes of its own. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np
from PIL import Image

from lmm_classifier.errors import ModelError
from lmm_classifier.models.loading import answering, open_model
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.types import FloatArray


class Classifier(Protocol):
    """A model that was trained to tell certain classes. A classifier is constructed from a ModelSpec."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the c classes; synonyms of one class are separated by ", " as in ImageNet's."""
        ...

    def probabilities(self, images: Sequence[Image.Image]) -> FloatArray:
        """How likely each class is in RGB images of any size.

        Returns:
            float32 (len(images), c) in [0, 1]; a row sums to 1 unless several classes may be in one image.
            A row does not depend on the other images of the call beyond rounding.

        Raises:
            ModelError: the model failed.
        """
        ...


def load_classifier(spec: ModelSpec) -> Classifier:
    """The one classifier of this spec in the process, opened on first use.

    Raises:
        ConfigError: unknown family.
        ModelError: it cannot be opened.
    """
    return cast("Classifier", open_model("classifier", spec))


def classified(spec: ModelSpec, images: Sequence[Image.Image]) -> FloatArray:
    """Ask the classifier of this spec, and take from it only what its protocol promises.

    Returns:
        float32 (len(images), c) in [0, 1].

    Raises:
        ModelError: it cannot be opened, failed, or gave something else.
    """
    classifier = load_classifier(spec)
    with answering("classifier", spec):
        rows = np.asarray(classifier.probabilities(images))
        c = len(classifier.names)
    expected = (len(images), c)
    if rows.dtype != np.float32 or rows.shape != expected or not ((rows >= 0) & (rows <= 1)).all():
        raise ModelError(
            f"classifier {spec.family!r} must give float32 {expected} in [0, 1], "
            f"got {rows.dtype} {rows.shape}"
        )
    return rows
