"""The forward pass of a model of torch: foreign errors in our words, features to unit rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from lmm_classifier.errors import ModelError
from lmm_classifier.models.pretrained import first_line
from lmm_classifier.types import FloatArray


@contextmanager
def running(weights: str, what: str) -> Iterator[None]:
    """Inference without gradients; what torch or a processor raises becomes a ModelError."""
    try:
        with torch.inference_mode():
            yield
    except (RuntimeError, ValueError) as error:  # torch's out-of-memory is a RuntimeError
        raise ModelError(f"{weights!r} failed on {what}: {first_line(error)}") from error


def unit_rows(features: torch.Tensor) -> FloatArray:
    """Features (n, d) of any float type as float32 rows of L2 norm 1."""
    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    return np.asarray(unit.cpu().numpy(), dtype=np.float32)
