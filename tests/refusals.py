"""Models that must not open, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lmm_classifier.errors import ModelError
from lmm_classifier.models.spec import ModelSpec

LONGEST = 500  # characters


def refused(load: Callable[[ModelSpec], Any], spec: ModelSpec, says: str) -> bool:
    """Whether opening raises a ModelError that matches `says`, in one short line."""
    with pytest.raises(ModelError, match=says) as caught:
        load(spec)
    return "\n" not in str(caught.value) and len(str(caught.value)) < LONGEST
