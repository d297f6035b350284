"""One photo and its tasks: what is asked becomes lines of steps, what they find becomes results."""

from __future__ import annotations

import asyncio
import base64
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from lmm_classifier.errors import (
    ConfigError,
    LmmClassifierError,
    ModelError,
    ModelOutOfMemoryError,
    ModelUnavailableError,
    UnknownCollectionError,
)
from lmm_classifier.service.operations import Operation, Refused
from lmm_classifier.service.schemas import OperationResult, RegionResult, Task
from lmm_classifier.service.workbench import Photo
from lmm_classifier.types import Sample

log = logging.getLogger(__name__)

# What a client is told of our errors: their own texts name files, addresses and versions.
TOLD: Mapping[type[LmmClassifierError], Refused] = {
    UnknownCollectionError: Refused("skipped", "unknown_collection", "there is no such collection"),
    ModelOutOfMemoryError: Refused("error", "out_of_memory", "there is not memory enough for this now"),
    ModelUnavailableError: Refused("error", "model_unavailable", "the model of this operation is not here"),
    ModelError: Refused("error", "model_failed", "the model of this operation failed"),
    LmmClassifierError: Refused("error", "unusable", "this operation cannot be used as the service is set up"),
}
BROKEN = Refused("error", "internal", "something broke; the log tells more")


@dataclass(frozen=True, slots=True)
class Analyst:
    """Does tasks with photos.

    Attributes:
        offered: operations by name.
    """

    offered: Mapping[str, Operation]

    async def results(self, photo: Photo, tasks: Sequence[Task]) -> dict[str, OperationResult]:
        """operation_id -> result, in the order of the tasks; a task that fails fails alone."""
        found = await asyncio.gather(*(self._result(photo, task) for task in tasks))
        return {task.operation_id: result for task, result in zip(tasks, found, strict=True)}

    async def _result(self, photo: Photo, task: Task) -> OperationResult:
        operation = self.offered.get(task.type)
        if operation is None:
            known = ", ".join(self.offered)
            return _refusal(Refused("skipped", "unknown_operation", f"there is no such operation; known: {known}"))
        try:
            line, include_crop = operation.steps(task.params)
        except ConfigError as error:
            return _refusal(Refused("skipped", "invalid_parameters", str(error)))
        try:
            sample = await photo.after(line)
            return await asyncio.to_thread(_told, operation, sample, include_crop)
        except LmmClassifierError as error:
            log.warning("operation %s: %s", operation.name, error)
            return _refusal(next(told for kind, told in TOLD.items() if isinstance(error, kind)))
        except Exception:  # a task's edge: one that breaks must not cost the others their answers
            log.exception("operation %s", operation.name)
            return _refusal(BROKEN)


def _told(operation: Operation, sample: Sample, include_crop: bool) -> OperationResult:
    if sample.skipped is not None:
        if operation.step is None and not operation.line:  # it was asked whether there is one, and there is none
            return OperationResult(data=None)
        return _refusal(Refused("skipped", sample.skipped.code, sample.skipped.reason))
    data = operation.data(sample)
    if isinstance(data, Refused):
        return _refusal(data)
    target = sample.target
    if target is None:
        return OperationResult(data=data)
    whole = target.fallback is not None
    region = RegionResult(
        requested=target.wanted,
        used="whole_image" if whole else target.wanted,
        fallback=target.fallback,
        bbox=list(target.box),
        score=sample.regions[target.row].score,
    )
    if whole:
        return OperationResult(data=data, region=region)
    return OperationResult(
        data=data,
        cropped_image_bbox=list(target.box),
        cropped_image_base64=_png(sample.image.crop(target.box)) if include_crop else None,
        region=region,
    )


def _refusal(refused: Refused) -> OperationResult:
    return OperationResult(status=refused.status, error_message=refused.message, error_code=refused.code)


def _png(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")
