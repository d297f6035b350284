"""Which model is meant: `ModelSpec`. Opens nothing, imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from lmm_classifier.options import (
    Device,
    DeviceMap,
    Dtype,
    Flag,
    MaxMemory,
    Pixels,
    check_budget,
    check_placement,
)

DEVICE, REQUIRE_GPU = "IMAGE_EMBED_DEVICE", "IMAGE_EMBED_REQUIRE_GPU"
"""Environment variables that `models.runtime.device` obeys."""


@dataclass(frozen=True, config={"extra": "forbid"})
class ModelSpec:
    """Which model, from where, on what. Hashable: equal specs share one loaded model.

    Attributes:
        family: name in the registry, such as "siglip".
        weights: hub id ("google/siglip-so400m-patch14-384"), local folder ("./my-model"), shipped
            checkpoint ("shipped:siglip-digits"), or "" for the family's default; `clip` also takes
            open_clip's "architecture/tag", `onnx` a file, `sam2` and `detr-panoptic` names of files behind a
            "#", and `openai_api` the address of a server and a model's name behind it.
        revision: branch, tag or commit on the hub; ignored for local weights.
        device: "auto" (what IMAGE_EMBED_DEVICE says, else the first CUDA device, Apple's, or the processor)
            or a torch device.
        dtype: arithmetic of the model, or "auto": bfloat16 on CUDA and on processors that have AVX512-BF16
            or AMX, float32 elsewhere. Vectors of two dtypes never mix: name one where an index built on
            one machine serves on another, or figures must not depend on the machine.
        compile: let torch compile the model, for encoders that run in torch. The first batch of each size
            takes many seconds and needs a C++ compiler; the ones after it are faster. Vectors change by
            rounding only, so this is no part of the contract.
        cache_dir: folder in which checkpoints are looked for and kept, laid out as the hub's library does it;
            None leaves it to that library and its environment variables. No part of the contract either.
        min_pixels: of a photo as a vision-language model sees it; a smaller one is enlarged. None: what its
            image processor says, but no more than `max_pixels`.
        max_pixels: of a photo as it sees it; a larger one is scaled down. None: 1280 x 28 x 28 or what its
            image processor says, whichever is less, but no less than `min_pixels`.
        device_map: how a model that may be larger than one device is spread over GPUs, then the processor's
            memory: "auto" and "balanced" fill GPUs evenly, "sequential" one after the other. None: one
            device; where that is too small and `device` is "auto", all GPUs.
        max_memory: (device, size) of what weights may take: of GPUs by number, "cpu" and "mps"; sizes are
            bytes or such as "20GiB". Devices left out are not used. None: what is free.
        offload_folder: where `device_map` may put what fits into no memory; None: nowhere.
    """

    family: str
    weights: str = ""
    revision: str = "main"
    device: Device = "auto"
    dtype: Dtype = "auto"
    compile: Flag = False
    cache_dir: Path | None = None
    min_pixels: Pixels | None = None
    max_pixels: Pixels | None = None
    device_map: DeviceMap | None = None
    max_memory: MaxMemory | None = None
    offload_folder: Path | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_budget(self.min_pixels, self.max_pixels)
        check_placement(self.device, self.device_map, self.offload_folder)
        return self

    @property
    def budget(self) -> str:
        """The pixels that a photo is given here, for what depends on them; "" where they are left open."""
        if self.min_pixels is None and self.max_pixels is None:
            return ""
        return f"{self.min_pixels or 'default'} to {self.max_pixels or 'default'} pixels"
