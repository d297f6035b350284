"""`rerank:` in the documented short form of the settings."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Any, Self

from pydantic import create_model, model_validator

from lmm_classifier.models.runtime.options import PLACEMENT
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.options import (
    Device,
    DeviceMap,
    Dtype,
    Flag,
    MaxMemory,
    Pixels,
    Share,
    check_budget,
    check_placement,
)
from lmm_classifier.steps.rerank import Rerank
from lmm_classifier.yaml_settings import Settings

_OPTIONS_OF_THE_MODEL = ("revision", "device", "dtype", "min_pixels", "max_pixels", *PLACEMENT)
"""Options of the model that have its names; `family` and `model_name` are the others."""
FROM_OTHER_SETTINGS = frozenset({"model", "index", "allow_unknown", "calibration"})
"""Options of the step that follow from other settings."""


class _RerankerSettings(Settings):
    """Whether a reranker is asked, and which."""

    enabled: Flag = True
    model_name: str = "Qwen/Qwen2-VL-7B-Instruct"
    family: str = "qwen-vl"
    revision: str = "main"
    device: Device = "auto"
    dtype: Dtype = "auto"
    min_pixels: Pixels | None = None
    max_pixels: Pixels | None = None
    device_map: DeviceMap | None = None
    max_memory: MaxMemory | None = None
    offload_folder: Path | None = None
    min_delta: Share | None = None

    @model_validator(mode="after")
    def _a_model(self) -> Self:
        check_budget(self.min_pixels, self.max_pixels)
        check_placement(self.device, self.device_map, self.offload_folder)
        return self

    def spec(self) -> ModelSpec:
        """The model these settings mean."""
        return ModelSpec(
            family=self.family,
            weights=self.model_name,
            **{name: getattr(self, name) for name in _OPTIONS_OF_THE_MODEL},
        )

    def options(self) -> dict[str, Any]:
        """Options of the step `rerank`, but for those that follow from other settings."""
        return self.model_dump(exclude=set(_RerankerSettings.model_fields))


_FIELDS: dict[str, Any] = {
    name: (field.annotation, copy(field))
    for name, field in vars(Rerank)["__pydantic_fields__"].items()
    if name not in FROM_OTHER_SETTINGS
}
_StepSettings: Any = create_model("_StepSettings", __base__=Settings, **_FIELDS)


class RerankSettings(_StepSettings, _RerankerSettings):  # type: ignore[misc]
    """`rerank:` whether and how a vision-language model decides the uncertain cases.

    The options of the step `rerank` are options here, with the same names, ranges and defaults. The index
    that exemplars come from is that of `retrieval`.
    """
