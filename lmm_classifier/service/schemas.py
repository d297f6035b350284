"""What goes in and out over HTTP: the documented fields, in their order."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, HttpUrl, model_validator

Name = Annotated[str, Field(min_length=1, max_length=200)]
TaskStatus = Literal["success", "error", "skipped"]
MOST_TASKS = 256
"""Of a request, whatever the settings allow."""


class Task(BaseModel):
    """One thing to do with the photo."""

    model_config = ConfigDict(extra="forbid")

    operation_id: Name
    type: Name
    params: dict[str, Any] = Field(default_factory=dict)


class Tasks(BaseModel):
    """What is to be done with one photo."""

    model_config = ConfigDict(extra="forbid")

    tasks: Annotated[list[Task], Field(max_length=MOST_TASKS)]

    @model_validator(mode="after")
    def _told_apart(self) -> Self:
        seen: set[str] = set()
        for task in self.tasks:
            if task.operation_id in seen:
                raise ValueError(f"operation_id {task.operation_id!r} is given twice")
            seen.add(task.operation_id)
        return self


class UrlRequest(Tasks):
    """`POST /analyze_image/`."""

    image_url: HttpUrl


class OperationResult(BaseModel):
    """What became of one task; a field that says nothing is null."""

    status: TaskStatus = "success"
    data: Any = None
    cropped_image_bbox: list[int] | None = None
    cropped_image_base64: str | None = None
    error_message: str | None = None
    error_code: str | None = None
    region: RegionResult | None = None


class RegionResult(BaseModel):
    """Where was looked, and whether that is where it was wanted."""

    requested: str
    used: str
    fallback: str | None
    bbox: list[int]
    score: float


class Analysis(BaseModel):
    """The answer about one photo."""

    image_url: str
    results: dict[str, OperationResult]


class Failure(BaseModel):
    """Why a whole request failed."""

    detail: str
    code: str


OperationResult.model_rebuild()
