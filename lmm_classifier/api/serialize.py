"""What steps found in one photo, as JSON types: every field of a sample that a step has set."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from lmm_classifier.masks import to_rle
from lmm_classifier.types import Region, Sample

_NOT_FOUND = frozenset({"sample_id", "image", "truth", "arrived"})  # given, not found
_REGION_KEYS = ("box", "kind", "source", "score")


def serialize_sample(sample: Sample) -> dict[str, Any]:
    """A flat view: source, width and height in pixels, then one key per field of the sample.

    Boxes are (x0, y0, x1, y1) in pixels of the upright photo, masks COCO's run lengths of all of it: `size`
    [h, w] and `counts`. Fields that no step has set are left out, and masks of regions that have none.
    """
    found: dict[str, Any] = {
        "source": sample.sample_id,
        "width": sample.image.width,
        "height": sample.image.height,
    }
    for field in dataclasses.fields(sample):
        value = getattr(sample, field.name)
        if field.name not in _NOT_FOUND and value is not None and not (_is_empty(value)):
            found[field.name] = _plain(value)
    if sample.target is not None:  # its score belongs to the answer, not only to a row of the regions
        found["target"]["score"] = sample.regions[sample.target.row].score
    return found


def _is_empty(value: Any) -> bool:
    return isinstance(value, Mapping) and not value


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Region):
        mask = {} if value.mask is None else {"mask": to_rle(value.mask)}
        return _plain({key: getattr(value, key) for key in _REGION_KEYS}) | mask
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(inner) for inner in value]
    return value.item() if isinstance(value, np.generic) else value
