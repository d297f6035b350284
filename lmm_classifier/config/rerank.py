"""`rerank:` in the documented short form of the settings."""

from __future__ import annotations

from collections.abc import Container
from copy import copy
from typing import Any, Self

from pydantic import create_model, model_validator

from lmm_classifier.models.runtime.default_checkpoints import default_weights
from lmm_classifier.models.runtime.options import PLACEMENT
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.options import Flag, Share, check_budget, check_placement
from lmm_classifier.steps.rerank import Rerank
from lmm_classifier.yaml_settings import Settings

OF_THE_MODEL = frozenset({"revision", "device", "dtype", "min_pixels", "max_pixels", *PLACEMENT})
"""Options of the model that have its names; `family` and `model_name` are the others."""
FROM_OTHER_SETTINGS = frozenset({"model", "index", "allow_unknown", "calibration"})
"""Options of the step that follow from other settings."""
OF_THE_STEP = frozenset(vars(Rerank)["__pydantic_fields__"]) - FROM_OTHER_SETTINGS


def _fields_of(declared: type, names: Container[str]) -> dict[str, Any]:
    """Some fields of a dataclass of pydantic, with their types, ranges and defaults, for `create_model`."""
    fields = vars(declared)["__pydantic_fields__"]
    return {name: (field.annotation, copy(field)) for name, field in fields.items() if name in names}


_Fields: Any = create_model(
    "_Fields",
    __base__=Settings,
    enabled=(Flag, True),
    model_name=(str, default_weights("qwen-vl")),
    family=(str, "qwen-vl"),
    **_fields_of(ModelSpec, OF_THE_MODEL),
    min_delta=(Share | None, None),
    **_fields_of(Rerank, OF_THE_STEP),
)


class RerankSettings(_Fields):  # type: ignore[misc]
    """`rerank:` whether and how a vision-language model decides the uncertain cases.

    The options of the step `rerank`, and of the model that it asks, are options here: the same names, ranges
    and defaults. The index that exemplars come from is that of `retrieval`.
    """

    @model_validator(mode="after")
    def _a_model(self) -> Self:
        check_budget(self.min_pixels, self.max_pixels)
        check_placement(self.device, self.device_map, self.offload_folder)
        return self

    def spec(self) -> ModelSpec:
        """The model these settings mean."""
        options = {name: getattr(self, name) for name in OF_THE_MODEL}
        return ModelSpec(family=self.family, weights=self.model_name, **options)

    def options(self) -> dict[str, Any]:
        """Options of the step `rerank`, but for those that follow from other settings."""
        options: dict[str, Any] = self.model_dump(include=set(OF_THE_STEP))
        return options
