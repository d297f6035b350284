"""What steps found in one photo, as JSON types: every field of a sample that a step has set."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from lmm_classifier.types import Sample

NOT_FOUND = frozenset({"sample_id", "image", "truth"})  # given, not found
NOT_SHOWN = frozenset({"mask"})  # an array as large as the photo


def findings(sample: Sample) -> dict[str, Any]:
    """A flat view: source, width and height in pixels, then one key per field of the sample.

    Boxes are (x0, y0, x1, y1) in pixels of the upright photo. Fields that no step has set are left out.
    """
    found: dict[str, Any] = {
        "source": sample.sample_id,
        "width": sample.image.width,
        "height": sample.image.height,
    }
    for field in dataclasses.fields(sample):
        value = getattr(sample, field.name)
        if field.name not in NOT_FOUND and value is not None and not (_is_empty(value)):
            found[field.name] = _plain(value)
    if sample.target is not None:  # its score belongs to the answer, not only to a row of the regions
        found["target"]["score"] = sample.regions[sample.target.row].score
    return found


def _is_empty(value: Any) -> bool:
    return isinstance(value, Mapping) and not value


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if dataclasses.is_dataclass(value):
        shown = (field.name for field in dataclasses.fields(value) if field.name not in NOT_SHOWN)
        return {name: _plain(getattr(value, name)) for name in shown}
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(inner) for inner in value]
    return value.item() if isinstance(value, np.generic) else value
