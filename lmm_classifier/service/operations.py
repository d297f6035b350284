"""What the service offers to do with a photo: each operation is a step, with options that a client may set.

Names, defaults and the shapes of `data` are those of the documented service; types and ranges come from the
steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from lmm_classifier import registry
from lmm_classifier.collection.step import CollectionId
from lmm_classifier.config.pipeline import PipelineConfig
from lmm_classifier.errors import ConfigError
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.regions import RegionSelector, TargetName, make_region_selector
from lmm_classifier.service.batching import Line
from lmm_classifier.types import Box, Sample, required
from lmm_classifier.yaml_settings import explain

Targets = tuple[TargetName, ...]
WHOLE: Targets = ("whole_image",)
_MOST_ITEMS = 16  # points of a prompt, and prompts
_MASKS = {"segment": 3, "segment_panoptic": 32}
"""Masks that one prompt, or one photo, may come to; SAM proposes three."""
_WHERE = ("face_context", "prominence", "padding", "crop_policy", "on_missing")
"""Options of `plan.Where` that a client may set."""


class CollectionParameters(BaseModel):
    """Which collection; it knows itself where its classifier looks, and refuses to look elsewhere."""

    model_config = ConfigDict(extra="forbid")

    collection_id: CollectionId
    target: TargetName | None = None
    face_context: Literal["prominent_person"] | None = None
    include_crop: bool = True


@dataclass(frozen=True, slots=True)
class OperationError:
    """Why a task has no answer.

    Attributes:
        status: "skipped": something it needs is missing; "error": something broke.
        code, message: for programs and for people.
    """

    status: Literal["skipped", "error"]
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class ViewedRegion:
    """Where an operation looked.

    Attributes:
        requested: target, such as "prominent_person".
        box: what was looked at, (x0, y0, x1, y1) px.
        fallback: why it is the whole image instead; None where it is as requested.
        score: of the detector; None where it is not known.
    """

    requested: str
    box: Box
    fallback: str | None
    score: float | None = None


@dataclass(frozen=True, slots=True)
class PlannedOperation:
    """A task, understood.

    Attributes:
        line: the steps that do it.
        include_crop: whether the crop comes back.
        must_find: a region that is missing is an error.
        n_masks: of the whole photo that it may make, at most.
    """

    line: Line
    include_crop: bool
    must_find: bool = False
    n_masks: int = 0


@dataclass(frozen=True)
class Operation:
    """One of them.

    Attributes:
        name: as in a request.
        description: one sentence.
        targets: where it may look; the first is the default.
        step: name of its step; None for one that only finds the place.
        options: of the step, chosen by the server.
        offered: options of the step that a client may set.
        config: of the service.
        data: what is told of the finished sample, as JSON types.
        line: the steps, where they are not one step of the registry.
        parameters, schema: what a client may set, and that as JSON schema.
        line_as_is: the steps of a task without parameters; none where it needs some.
    """

    name: str
    description: str
    targets: Targets
    step: str | None
    options: Mapping[str, Any]
    offered: tuple[str, ...]
    config: PipelineConfig
    data: Callable[[Sample], Any]
    line: Line = ()
    parameters: type[BaseModel] = field(init=False, compare=False)
    schema: Mapping[str, Any] = field(init=False, compare=False)
    line_as_is: Line = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", self._parameters())
        object.__setattr__(self, "schema", self.parameters.model_json_schema())  # slow: once, not per request
        # settings of the server that are wrong are found now
        object.__setattr__(self, "line_as_is", self.steps({}).line if self._is_usable_as_is() else ())

    def steps(self, params: Mapping[str, Any]) -> PlannedOperation:
        """What a client asks for, understood.

        Raises:
            ConfigError: a parameter is unknown, out of range, or not for this operation; one line says which.
        """
        asked: Any = self._read(params)
        if asked.target not in self.targets:
            raise ConfigError(
                f"target {asked.target!r} is not for {self.name}; it takes {', '.join(self.targets)}"
            )
        where = asked.model_dump(include=set(_WHERE), exclude_none=True)
        must_find = asked.on_missing == "error"
        if must_find or (self.step is None and asked.on_missing is None):  # a detector falls back to nothing
            where["on_missing"] = "skip"
        place = make_region_selector({"target": asked.target, **self._detectors(), **where})
        line = self.line
        if self.step is not None:
            chosen = {name: getattr(asked, name) for name in self.offered if name in asked.model_fields_set}
            line = (self.config.step(self.step, {**self.options, **chosen}),)
        n_masks = _MASKS.get(self.step or "", 0) * max(len(getattr(asked, "prompts", ())), 1)
        return PlannedOperation(
            (*map(self.config.cached, place.steps()), *line), asked.include_crop, must_find, n_masks
        )

    def models(self) -> tuple[ModelSpec, ...]:
        """The models it takes, as far as the settings say."""
        return tuple(spec for step in self.line_as_is for spec in step.models())

    def looked(self, sample: Sample) -> ViewedRegion | None:
        """Where a finished sample was looked at; None if at the whole of it, as requested."""
        target = sample.target
        if target is None:
            return None
        score = None if target.fallback else sample.regions[target.row].score
        return ViewedRegion(f"prominent_{target.wanted}", target.box, target.fallback, score)

    def _detectors(self) -> dict[str, ModelSpec]:
        chosen = {"persons": self.config.service.persons, "faces": self.config.service.faces}
        return {name: spec for name, spec in chosen.items() if spec is not None}

    def _read(self, params: Mapping[str, Any]) -> BaseModel:
        try:
            return self.parameters.model_validate(params)
        except ValidationError as error:
            raise ConfigError(explain(error, self.parameters)) from error

    def _is_usable_as_is(self) -> bool:
        return not any(each.is_required() for each in self.parameters.model_fields.values())

    def _parameters(self) -> type[BaseModel]:
        fields: dict[str, Any] = {
            "target": (TargetName, self.targets[0]),
            **_fields_of(RegionSelector, _WHERE, {}),
        }
        if self.step is not None:
            fields |= _fields_of(registry.resolve("step", self.step), self.offered, self.options)
        config = ConfigDict(extra="forbid", protected_namespaces=())
        return create_model(f"{self.name}_parameters", __config__=config, **fields, include_crop=(bool, True))


def _fields_of(cls: type, names: Sequence[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """Type, range and default of options, as `create_model` takes them; what is given is the default."""
    hints, options = get_type_hints(cls, include_extras=True), {f.name: f for f in dataclasses.fields(cls)}
    defaults = {name: given.get(name, options[name].default) for name in names}
    types = {name: _bounded(hints[name]) for name in names}
    return {n: (types[n], ... if d is dataclasses.MISSING else d) for n, d in defaults.items()}


def _bounded(hint: Any) -> Any:
    """Points and prompts without end would keep a model busy for as long as somebody likes."""
    return Annotated[hint, Field(max_length=_MOST_ITEMS)] if ... in get_args(hint) else hint


@dataclass(frozen=True)
class Collections(Operation):
    """Whether the photo belongs to one collection."""

    def steps(self, params: Mapping[str, Any]) -> PlannedOperation:
        """As of any operation."""
        asked: Any = self._read(params)
        options = {
            **self._detectors(),
            **self.options,
            "collections": (asked.collection_id,),
            "target": asked.target,
        }
        return PlannedOperation((self.config.step("classify", options),), asked.include_crop)

    def looked(self, sample: Sample) -> ViewedRegion | None:
        """What the classifier looked at."""
        [found] = required(sample.memberships)
        if found.box is None or found.region in {None, "whole_image"}:
            return None
        return ViewedRegion(str(found.region), found.box, found.fallback)

    def _parameters(self) -> type[BaseModel]:
        return CollectionParameters
