"""What a text encoder is told about a label: several sentences, one vector. No torch here."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from lmm_classifier.errors import ConfigError
from lmm_classifier.models.base import TextEncoder
from lmm_classifier.models.loading import load_text_encoder
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.types import FloatArray

_SLOT = "{}"
# The bare name, CLIP's general sentence (Radford et al., ICML 2021, section 3.1.4) without and with an
# article, and a closer look: they fit photographs of anything, and labels in singular and plural.
TEMPLATES = ("{}", "a photo of {}", "a photo of a {}.", "a close-up photo of a {}.")
MAX_SENTENCES = 256
"""Sentences per call of the text tower: a thousand labels must not need the memory of all theirs at once."""


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
    if not templates or any(_SLOT not in template for template in templates):
        raise ConfigError(f"every prompt template needs a {_SLOT} for the label, got {list(templates)}")
    names = [label.replace("_", " ") for label in labels]
    sentences = [template.replace(_SLOT, name) for name in names for template in templates]
    starts = range(0, max(1, len(sentences)), MAX_SENTENCES)  # one call even for none: it knows d
    vectors = np.concatenate([encoder.encode_text(sentences[i : i + MAX_SENTENCES]) for i in starts])
    means = vectors.reshape(len(labels), len(templates), vectors.shape[1]).mean(axis=1)
    return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True), np.float32)


_lock = threading.Lock()


def kept_label_vectors(
    spec: ModelSpec, labels: tuple[str, ...], templates: tuple[str, ...] = TEMPLATES
) -> FloatArray:
    """`label_vectors` of the encoder of this spec, computed once however many threads ask.

    Returns:
        float32 (c, d), each row of L2 norm 1, read-only. The last 8 asked for are kept.

    Raises:
        ConfigError, ModelError: as `load_text_encoder` and `label_vectors`; a failure is not kept.
    """
    with _lock:
        return _label_vectors(spec, labels, templates)


@lru_cache(maxsize=8)
def _label_vectors(spec: ModelSpec, labels: tuple[str, ...], templates: tuple[str, ...]) -> FloatArray:
    vectors = label_vectors(load_text_encoder(spec), labels, templates)
    vectors.setflags(write=False)
    return vectors
