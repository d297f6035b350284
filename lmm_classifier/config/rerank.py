"""`rerank:` in the documented short form of the settings."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator

from lmm_classifier.models.runtime.options import PLACEMENT
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.models.vlm.strategies import Mode, Scoring
from lmm_classifier.options import (
    BatchSize,
    Candidates,
    Device,
    DeviceMap,
    Dtype,
    Exemplars,
    Flag,
    MaxMemory,
    Permutations,
    Pixels,
    Seconds,
    Share,
    check_budget,
    check_placement,
)

OPTIONS_OF_THE_MODEL = ("revision", "device", "dtype", "min_pixels", "max_pixels", *PLACEMENT)
"""Options of the model that have its names; `family` and `model_name` are the others."""
NOT_OF_THE_STEP = {"enabled", "model_name", "family", "min_delta", *OPTIONS_OF_THE_MODEL}


class RerankSettings(BaseModel):
    """`rerank:` whether and how a vision-language model decides the uncertain cases.

    Options of the step `rerank` have its names; the index of the exemplars is that of `retrieval`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

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
    mode: Mode = "listwise"
    scoring: Scoring = "likelihood"
    max_candidates: Candidates = 5
    permutations: Permutations = 1
    exemplars: Exemplars = 0
    corpus_root: Path | None = None
    max_batch_size: BatchSize = 8
    max_seconds: Seconds | None = None
    deadline: Seconds | None = None
    max_share: Share | None = None
    prompt_template: str | None = None
    answers: Path | None = None
    self_test: Flag = True
    twin: ModelSpec | None = None

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
            **{name: getattr(self, name) for name in OPTIONS_OF_THE_MODEL},
        )
