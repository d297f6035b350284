"""What goes in and out over HTTP: the documented fields, in their order, and after them our own."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

_Name = Annotated[str, Field(min_length=1, max_length=200)]
# Not pydantic's type, which would rewrite it: `fetch` reads it, strictly, and nobody else does.
_WebUrl = Annotated[
    str, Field(max_length=2048, pattern=r"^[Hh][Tt][Tt][Pp][Ss]?://", json_schema_extra={"format": "uri"})
]
_MOST_TASKS = 256  # of a request, whatever the settings allow
# Characters of a task's, as JSON: nobody types more, and a model would read it all
_MOST_PARAMETERS = 16 * 1024


class Task(BaseModel):
    """One thing to do with the photo."""

    model_config = ConfigDict(extra="forbid")

    operation_id: _Name
    type: _Name
    params: dict[str, Any] = Field(default_factory=dict)

    @field_validator("params")
    @classmethod
    def _not_endless(cls, params: dict[str, Any]) -> dict[str, Any]:
        if len(json.dumps(params)) > _MOST_PARAMETERS:
            raise ValueError(f"the parameters of a task may have {_MOST_PARAMETERS} characters")
        return params


class Tasks(BaseModel):
    """What is to be done with one photo."""

    model_config = ConfigDict(extra="forbid")

    tasks: Annotated[list[Task], Field(max_length=_MOST_TASKS)]

    @model_validator(mode="after")
    def _told_apart(self) -> Self:
        seen: set[str] = set()
        for task in self.tasks:
            if task.operation_id in seen:
                raise ValueError("an operation_id is given twice")
            seen.add(task.operation_id)
        return self


class UrlRequest(Tasks):
    """`POST /analyze_image/`."""

    image_url: _WebUrl


class RegionResult(BaseModel):
    """Where was looked, and whether that is where it was wanted."""

    requested: str
    used: str
    fallback: str | None
    bbox: list[int]
    score: float | None


class EncoderResult(BaseModel):
    """What made a vector, and how: two of one fingerprint can be compared, others never."""

    fingerprint: str
    name: str
    dim: int
    dtype: str
    normalized: bool


class OperationResult(BaseModel):
    """What became of one task; a field that says nothing is null."""

    status: Literal["success", "error", "skipped"] = "success"
    data: Any = None
    cropped_image_bbox: list[int] | None = None
    cropped_image_base64: str | None = None
    error_message: str | None = None
    error_code: str | None = None
    region: RegionResult | None = None
    encoder: EncoderResult | None = None


class Analysis(BaseModel):
    """The answer about one photo."""

    image_url: str
    results: dict[str, OperationResult]


class Failure(BaseModel):
    """Why a whole request failed."""

    detail: str
    code: str


class OperationEntry(BaseModel):
    """One operation, as `GET /available_operations/` lists it."""

    description: str
    allowed_targets: list[str]
    default_target: str
    parameters: dict[str, Any]
    loaded: bool | None


class CollectionEntry(BaseModel):
    """One collection, as `GET /collections/` lists it."""

    collection_id: str
    name: str | None
    usable: bool
    derivative_type: str | None = None
    embedding_type: str | None = None
    dimensionality: int | None = None
    threshold: float | None = None
    metrics: dict[str, float | int | None] = Field(default_factory=dict)
