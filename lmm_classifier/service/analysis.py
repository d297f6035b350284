"""One photo and its tasks: what is asked becomes lines of steps, what they find becomes results."""

from __future__ import annotations

import asyncio
import base64
import io
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lmm_classifier.errors import (
    ConfigError,
    ImageError,
    LmmClassifierError,
    ModelError,
    ModelOutOfMemoryError,
    ModelUnavailableError,
    UnknownCollectionError,
)
from lmm_classifier.models.loading import load_encoder
from lmm_classifier.service.batching import BatchScheduler, QueuedPhoto
from lmm_classifier.service.operations import Operation, OperationError, PlannedOperation
from lmm_classifier.service.schemas import Analysis, EncoderResult, OperationResult, RegionResult, Task
from lmm_classifier.steps.embed import Embed
from lmm_classifier.types import Box, Sample

log = logging.getLogger(__name__)

# What a client is told of our errors: their own texts name files, addresses and versions.
_TOLD: Mapping[type[LmmClassifierError], OperationError] = {
    ConfigError: OperationError(
        "skipped", "invalid_parameters", "the parameters do not fit this photo or collection"
    ),
    UnknownCollectionError: OperationError("skipped", "unknown_collection", "there is no such collection"),
    ModelOutOfMemoryError: OperationError(
        "error", "out_of_memory", "there is not memory enough for this now"
    ),
    ModelUnavailableError: OperationError(
        "error", "model_unavailable", "the model of this operation is not here"
    ),
    ModelError: OperationError("error", "model_failed", "the model of this operation failed"),
    LmmClassifierError: OperationError(
        "error", "unusable", "this operation cannot be used as the service is set up"
    ),
}
_LEFT_OUT = "the crop would make the answer too large; ask with include_crop: false, or for less at once"
_BROKEN = OperationError("error", "internal", "something broke; the log tells more")


@dataclass(frozen=True, slots=True)
class _Planned:
    """A task that can be done: what with, how, and at what resolution."""

    operation: Operation
    asked: PlannedOperation
    target_size: int | None


@dataclass(frozen=True, slots=True)
class AnalysisPlan:
    """What is to be done with a photo.

    Attributes:
        tasks: as they were asked for.
        planned: for each, how it is done, or why it is not.
        n_masks: of the whole photo that may come of it, at most.
    """

    tasks: Sequence[Task]
    planned: Sequence[_Planned | OperationError]
    n_masks: int


@dataclass(frozen=True, slots=True)
class Finished:
    """An answer.

    Attributes:
        analysis: for the client, as JSON.
        timings: step -> seconds, this photo's share; for the log.
        done: operation -> how many tasks of it; for the log, too.
    """

    analysis: str
    timings: Mapping[str, float]
    done: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Analyst:
    """Does tasks with photos.

    Attributes:
        bench: where steps run.
        offered: operations by name.
        max_crop_bytes: of all crops of an answer together.
    """

    bench: BatchScheduler
    offered: Mapping[str, Operation]
    max_crop_bytes: int

    @property
    def store(self) -> Path | None:
        """Where `classify` finds its classifiers; None: in the usual place."""
        options = self.offered["classify"].options if "classify" in self.offered else {}
        return Path(options["store"]) if "store" in options else None

    async def plan(self, tasks: Sequence[Task]) -> AnalysisPlan:
        """How tasks are going to be done; may open the models that say what resolution they need."""
        planned = await asyncio.gather(*(self._planned(task) for task in tasks))
        return AnalysisPlan(tasks, planned, sum(p.asked.n_masks for p in planned if isinstance(p, _Planned)))

    async def answer(self, name: str, photo: QueuedPhoto, plan: AnalysisPlan) -> Finished:
        """What the tasks find; one that fails fails alone.

        Raises:
            ImageError: the photo cannot be read.
        """
        sizes = {planned.target_size for planned in plan.planned if isinstance(planned, _Planned)} or {None}
        for size in sizes:
            await photo.opened(size)
        samples = await asyncio.gather(*(_done(photo, planned) for planned in plan.planned))
        # crops and masks are encoded, and long vectors written, while the loop serves others
        return await self.bench.aside(_finished, name, plan, samples, _Crops(self.max_crop_bytes))

    async def _planned(self, task: Task) -> _Planned | OperationError:
        operation = self.offered.get(task.type)
        if operation is None:
            known = ", ".join(self.offered)
            return OperationError(
                "skipped", "unknown_operation", f"there is no such operation; known: {known}"
            )
        try:
            asked = operation.steps(task.params)
        except ConfigError as error:
            return OperationError("skipped", "invalid_parameters", str(error))
        try:
            return _Planned(operation, asked, await self.bench.resolution(asked.line))
        except LmmClassifierError as error:
            return _told_of(operation, error)


async def _done(photo: QueuedPhoto, plan: _Planned | OperationError) -> Sample | OperationError:
    if isinstance(plan, OperationError):
        return plan
    try:
        return await photo.after(plan.asked.line, plan.target_size)
    except ImageError:
        raise
    except LmmClassifierError as error:
        return _told_of(plan.operation, error)
    except Exception:  # a task's edge: one that breaks must not cost the others their answers
        log.exception("operation %s", plan.operation.name)
        return _BROKEN


def _told_of(operation: Operation, error: LmmClassifierError) -> OperationError:
    log.warning("operation %s: %s", operation.name, error)
    return next(told for kind, told in _TOLD.items() if isinstance(error, kind))


def _finished(
    name: str, plan: AnalysisPlan, samples: Sequence[Sample | OperationError], crops: _Crops
) -> Finished:
    results, timings = {}, dict[str, float]()
    for task, planned, sample in zip(plan.tasks, plan.planned, samples, strict=True):
        results[task.operation_id] = _result(planned, sample, crops)
        timings |= {} if isinstance(sample, OperationError) else sample.timings
    done = Counter(planned.operation.name for planned in plan.planned if isinstance(planned, _Planned))
    return Finished(Analysis(image_url=name, results=results).model_dump_json(), timings, done)


def _result(
    plan: _Planned | OperationError, sample: Sample | OperationError, crops: _Crops
) -> OperationResult:
    if isinstance(sample, OperationError):
        return _refusal(sample)
    if isinstance(plan, OperationError):
        return _refusal(plan)
    try:
        return _found(plan.operation, plan.asked, sample, crops)
    except Exception:  # as above
        log.exception("operation %s", plan.operation.name)
        return _refusal(_BROKEN)


def _found(operation: Operation, asked: PlannedOperation, sample: Sample, crops: _Crops) -> OperationResult:
    if sample.skipped is not None:
        if asked.must_find:
            return _refusal(OperationError("error", sample.skipped.code, sample.skipped.reason))
        if operation.step is None:  # it was asked whether there is one, and there is none
            return OperationResult(data=None)
        return _refusal(OperationError("skipped", sample.skipped.code, sample.skipped.reason))
    data = operation.data(sample)
    if isinstance(data, OperationError):
        return _refusal(data)
    result = OperationResult(data=data, encoder=_encoder(asked, sample))
    looked = operation.looked(sample)
    if looked is None:
        return result
    result.region = RegionResult(
        requested=looked.requested,
        used="whole_image" if looked.fallback else looked.requested,
        fallback=looked.fallback,
        bbox=list(looked.box),
        score=looked.score,
    )
    if looked.fallback is None:
        result.cropped_image_bbox = list(looked.box)
        if asked.include_crop and (crop := crops.of(sample.image, looked.box)) is None:
            result.error_code, result.error_message = "crop_left_out", _LEFT_OUT
        elif asked.include_crop:
            result.cropped_image_base64 = crop
    return result


def _encoder(asked: PlannedOperation, sample: Sample) -> EncoderResult | None:
    last = asked.line[-1]
    if not isinstance(last, Embed):
        return None
    [fingerprint] = sample.embeddings
    contract = load_encoder(last.encoder).contract
    return EncoderResult(
        fingerprint=fingerprint,
        name=contract.name,
        dim=contract.dim,
        dtype=contract.dtype,
        normalized=last.normalize,
    )


def _refusal(refused: OperationError) -> OperationResult:
    return OperationResult(status=refused.status, error_message=refused.message, error_code=refused.code)


class _Crops:
    """The crops of one answer as base64 PNG: each is made once, and together they have so many bytes."""

    def __init__(self, most: int) -> None:
        self._made: dict[Box, str] = {}
        self._left = most

    def of(self, image: Image.Image, box: Box) -> str | None:
        """The crop; None where the answer would become too large."""
        if self._left <= 0:
            return None
        if box not in self._made:
            file = io.BytesIO()
            image.crop(box).save(file, "PNG")
            self._made[box] = base64.b64encode(file.getvalue()).decode("ascii")
        self._left -= len(self._made[box])
        return self._made[box] if self._left >= 0 else None
