"""What a setting may be, said once for YAML, Python and command line.

Numbers and switches are strict: `top_k: yes` or `allow_unknown: "off"` is a mistake, not a 1 or a False.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer

Flag = Annotated[bool, Field(strict=True)]
Share = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]
Temperature = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
TopK = Annotated[int, Field(strict=True, ge=1, le=10_000)]
Template = Annotated[str, Field(pattern=r"\{\}")]  # with {} where a label goes
MaxLength = Annotated[int, Field(strict=True, ge=1, le=1024)]  # new tokens of a caption
Candidates = Annotated[int, Field(strict=True, ge=1, le=20)]
Exemplars = Annotated[int, Field(strict=True, ge=0, le=4)]  # photos shown per candidate
Permutations = Annotated[int, Field(strict=True, ge=1, le=20)]
Pixels = Annotated[int, Field(strict=True, ge=1)]  # of a photo, as a vision-language model sees it
BatchSize = Annotated[int, Field(strict=True, ge=1, le=4096)]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DeviceMap = Literal["auto", "balanced", "sequential"]
SearchBackend = Literal["faiss", "milvus"]


def check_budget(min_pixels: int | None, max_pixels: int | None) -> None:
    """Raise a ValueError if a photo could not have that many pixels."""
    if min_pixels is not None and max_pixels is not None and max_pixels < min_pixels:
        raise ValueError(
            f"max_pixels {max_pixels} is less than min_pixels {min_pixels}: raise it or lower that"
        )


def check_placement(device: str, device_map: str | None, offload_folder: Path | None) -> None:
    """Raise a ValueError if it is not clear where a model is to go."""
    if device_map is not None and ":" in device:
        raise ValueError(
            f"device_map spreads a model over all GPUs, and device {device} is one: leave one of them out"
        )
    if offload_folder is not None and device_map is None:
        raise ValueError(
            "offload_folder is for what device_map puts on disk: set device_map, or leave it out"
        )


_SIZE = re.compile(r"\d+(\.\d+)? ?[KMG]i?B")  # as accelerate reads them; it takes a small b for bits


def _limits(value: Any) -> Any:
    """{device: size} as sorted pairs, which can be hashed; a GPU is a number, also where keys are text."""
    if not isinstance(value, Mapping | tuple | list):
        raise ValueError(f"must map devices to sizes, such as {{0: 20GiB, cpu: 30GiB}}, got {value!r:.40}")
    limits: dict[int | str, int | str] = {}
    for device, size in value.items() if isinstance(value, Mapping) else value:
        place = int(device) if isinstance(device, str) and device.isdecimal() else device
        is_one = (type(place) is int and place >= 0) or place in ("cpu", "mps")
        if not is_one or place in limits:
            raise ValueError(f"{device!r:.40} must be the number of a GPU, cpu or mps, each once")
        known = _SIZE.fullmatch(size) if isinstance(size, str) else type(size) is int and size >= 0
        if not known:
            raise ValueError(f"{size!r:.40} of {device} must be a size such as 20GiB, or a number of bytes")
        limits[place] = size
    if not limits:
        raise ValueError("must name a device, such as {0: 20GiB, cpu: 30GiB}; or leave it out")
    return tuple(sorted(limits.items(), key=lambda limit: (isinstance(limit[0], str), limit[0])))


MaxMemory = Annotated[
    tuple[tuple[int | str, int | str], ...],
    BeforeValidator(_limits),
    PlainSerializer(
        lambda limits: {str(device): size for device, size in limits}, return_type=dict[str, int | str]
    ),
]
