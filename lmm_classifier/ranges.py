"""What a setting may be, said once for YAML, Python and command line.

Numbers and switches are strict: `top_k: yes` or `allow_unknown: "off"` is a mistake, not a 1 or a False.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

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
SearchBackend = Literal["faiss", "milvus"]


def check_budget(min_pixels: int | None, max_pixels: int | None) -> None:
    """Raise a ValueError if a photo could not have that many pixels."""
    if min_pixels is not None and max_pixels is not None and max_pixels < min_pixels:
        raise ValueError(
            f"max_pixels {max_pixels} is less than min_pixels {min_pixels}: raise it or lower that"
        )
