"""Arrays by the type of their numbers, and what keeps values as they are."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
_T = TypeVar("_T")


def required(value: _T | None) -> _T:
    """Narrow a field that the step's `requires` guarantees; a bug in the step if it fails."""
    if value is None:
        raise AssertionError("a step read a field that it does not list in `requires`")
    return value


def read_only(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    """A view that cannot be written, over a copy that nobody else holds."""
    return MappingProxyType(dict(mapping))
