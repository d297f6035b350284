"""What a text encoder is told about a label: several sentences, one vector. No torch here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmm_classifier.errors import ConfigError
from lmm_classifier.models.base import TextEncoder
from lmm_classifier.types import FloatArray

SLOT = "{}"
# The bare name, CLIP's general sentence (Radford et al., ICML 2021, section 3.1.4) without and with an
# article, and a closer look: they fit photographs of anything, and labels in singular and plural.
TEMPLATES = ("{}", "a photo of {}", "a photo of a {}.", "a close-up photo of a {}.")


def label_vectors(
    encoder: TextEncoder, labels: Sequence[str], templates: Sequence[str] = TEMPLATES
) -> FloatArray:
    """One vector per label: the mean direction of its sentences.

    Labels are inserted literally, but for underscores, which file names have in place of blanks.

    Args:
        encoder: gives the vectors of the sentences.
        labels: c labels.
        templates: sentences with `{}` where the label goes.

    Returns:
        float32 (c, d), each row of L2 norm 1.

    Raises:
        ConfigError: no template, or one without a place for the label.
        ModelError: the encoder failed.
    """
    if not templates or any(SLOT not in template for template in templates):
        raise ConfigError(f"every prompt template needs a {SLOT} for the label, got {list(templates)}")
    names = [label.replace("_", " ") for label in labels]
    sentences = [template.replace(SLOT, name) for name in names for template in templates]
    vectors = encoder.encode_text(sentences)
    means = vectors.reshape(len(labels), len(templates), vectors.shape[1]).mean(axis=1)
    return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True), np.float32)
