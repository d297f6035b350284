"""What the service offers to do with a photo: each operation is a step, with the options that a client may set.

Names, defaults and the shapes of `data` are those of the documented service; types and ranges come from the
steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from lmm_classifier import registry
from lmm_classifier.classifier import HybridClassifier
from lmm_classifier.collection.step import CollectionId
from lmm_classifier.config import make_step
from lmm_classifier.errors import ConfigError
from lmm_classifier.masks import to_rle
from lmm_classifier.models.base import ModelSpec
from lmm_classifier.pipeline import Step
from lmm_classifier.plan import FaceContext, TargetName, make_where
from lmm_classifier.result import summarise
from lmm_classifier.serving import ServiceSettings
from lmm_classifier.steps.focus import CropPolicy, OnMissing, Padding, Prominence
from lmm_classifier.types import Region, Sample, required
from lmm_classifier.yaml_file import explain

Targets = tuple[TargetName, ...]
EVERYWHERE: Targets = ("whole_image", "prominent_person", "prominent_face")
SOMEBODY: Targets = ("prominent_person", "prominent_face")
WHOLE: Targets = ("whole_image",)


class WhereParameters(BaseModel):
    """Where an operation looks, and whether the crop comes back; see `plan.Where`."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    face_context: FaceContext = "prominent_person"
    prominence: Prominence = "score"
    padding: Padding = 0.0
    crop_policy: CropPolicy = "pad"
    on_missing: OnMissing | None = None
    include_crop: bool = True


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a task has no answer.

    Attributes:
        status: "skipped": something it needs is missing; "error": something broke.
        code, message: for programs and for people.
    """

    status: Literal["skipped", "error"]
    code: str
    message: str


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
        data: what is told of the finished sample, as JSON types.
        line: the steps, where they are not one step of the registry.
    """

    name: str
    description: str
    targets: Targets
    step: str | None
    options: Mapping[str, Any]
    offered: tuple[str, ...]
    data: Callable[[Sample], Any]
    line: tuple[Step, ...] = ()
    parameters: type[BaseModel] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        fields: dict[str, Any] = {"target": (TargetName, self.targets[0])}
        if self.step is not None:
            cls = registry.resolve("step", self.step)
            hints = get_type_hints(cls, include_extras=True)
            for each in dataclasses.fields(cls):
                if each.name in self.offered:
                    default = ... if each.default is dataclasses.MISSING else each.default
                    fields[each.name] = (hints[each.name], default)
        made = create_model(f"{self.name}_parameters", __base__=WhereParameters, **fields)
        object.__setattr__(self, "parameters", made)

    def steps(self, params: Mapping[str, Any]) -> tuple[tuple[Step, ...], bool]:
        """The line of steps for what a client asks, and whether the crop is wanted.

        Raises:
            ConfigError: a parameter is unknown, out of range, or not for this operation; one line says which.
        """
        try:
            asked = self.parameters.model_validate(params)
        except ValidationError as error:
            raise ConfigError(explain(error, self.parameters)) from error
        target = getattr(asked, "target", self.targets[0])
        if target not in self.targets:
            raise ConfigError(f"target {target!r} is not for {self.name}; it takes {', '.join(self.targets)}")
        where = asked.model_dump(include=set(WhereParameters.model_fields) - {"include_crop"})
        place = make_where({"target": target, **{k: v for k, v in where.items() if v is not None}})
        line = self.line
        if self.step is not None:
            chosen = {name: getattr(asked, name) for name in self.offered if name in asked.model_fields_set}
            line = (make_step(self.step, {**self.options, **chosen}),)
        return (*place.steps(), *line), asked.include_crop  # type: ignore[attr-defined]


@dataclass(frozen=True)
class _InCollection(Operation):
    """Whether the photo belongs to one collection, which knows where its classifier looks."""

    def __post_init__(self) -> None:
        fields: dict[str, Any] = {"collection_id": (CollectionId, ...), "target": (TargetName | None, None)}
        config = ConfigDict(extra="forbid")
        made = create_model(f"{self.name}_parameters", __config__=config, **fields)
        object.__setattr__(self, "parameters", made)

    def steps(self, params: Mapping[str, Any]) -> tuple[tuple[Step, ...], bool]:
        """As of any operation."""
        try:
            asked: Any = self.parameters.model_validate(params)
        except ValidationError as error:
            raise ConfigError(explain(error, self.parameters)) from error
        options = {**self.options, "collections": (asked.collection_id,), "target": asked.target}
        return (make_step("classify", options),), False


def operations(classifier: HybridClassifier, settings: ServiceSettings) -> dict[str, Operation]:
    """All that a service with these settings offers, by name.

    Raises:
        ConfigError: settings of an operation that there is not.
    """
    offered = {operation.name: operation for operation in _all(classifier, settings)}
    for name, options in settings.operations.items():
        if name not in offered:
            raise ConfigError(
                f"service.operations: unknown operation {name!r}{registry.did_you_mean(name, tuple(offered))}"
            )
        if options is None:
            del offered[name]
        else:
            operation = offered[name]
            offered[name] = dataclasses.replace(operation, options={**operation.options, **options})
    return offered


def _all(classifier: HybridClassifier, settings: ServiceSettings) -> Sequence[Operation]:
    store = {} if settings.store is None else {"store": settings.store}
    hybrid = classifier.pipeline.steps
    encoder = getattr(classifier.config, "encoder", ModelSpec("siglip"))
    siglip = encoder if encoder.family == "siglip" else ModelSpec("siglip")
    embeds = (
        ("embed_clip_vit_b_32", "a CLIP ViT-B/32 vector, 512 numbers", ModelSpec("clip")),
        ("embed_dino_v2", "a DINOv2 vector, 768 numbers", ModelSpec("dinov2")),
        ("embed_dino_v3", "a DINOv3 vector, 1024 numbers", ModelSpec("dinov3")),
        ("embed_siglip", "a SigLIP vector", siglip),
    )
    return (
        Operation(
            "detect_bounding_box",
            "Where the most prominent person or face is.",
            SOMEBODY,
            None,
            {},
            (),
            _box,
        ),
        *(
            Operation(name, f"Encodes the image as {what}.", EVERYWHERE, "embed", {"encoder": spec}, (), _vector)
            for name, what, spec in embeds
        ),
        _InCollection(
            "classify",
            "Says whether the image belongs to a collection, looking where its classifier was trained to.",
            WHOLE,
            "classify",
            store,
            (),
            _membership,
        ),
        Operation(
            "describe_image",
            "Describes the image in words.",
            EVERYWHERE,
            "caption",
            {"model": ModelSpec("blip")},
            ("max_length", "prompt"),
            lambda sample: required(sample.captions)[0],
        ),
        Operation(
            "classify_hybrid",
            "Classifies the image by retrieval, unknown where nothing fits; uncertain ones are looked at twice.",
            WHOLE,
            None,
            {},
            (),
            lambda sample: summarise(sample, classifier.thresholds).to_dict(),
            line=hybrid,
        ),
        Operation(
            "label_image",
            "Names what is in the image, best first.",
            EVERYWHERE,
            "label",
            {"model": ModelSpec("image-classifier")},
            ("top_k", "min_score"),
            _labels,
        ),
        Operation(
            "segment",
            "Cuts out what points and boxes mean.",
            WHOLE,
            "segment",
            {},
            ("points", "negative_points", "box", "box_format", "prompts", "multimask", "min_score"),
            lambda sample: _masks(sample, "segment"),
        ),
        Operation(
            "segment_panoptic",
            "Divides the image into things and stuff.",
            WHOLE,
            "segment_panoptic",
            {},
            ("min_score", "fuse_stuff"),
            lambda sample: _masks(sample, "segment_panoptic"),
        ),
    )


def _box(sample: Sample) -> list[int] | None:
    target = sample.target
    return None if target is None or target.fallback else list(sample.regions[target.row].box)


def _vector(sample: Sample) -> list[float]:
    [vectors] = sample.embeddings.values()
    found: list[float] = vectors[0].tolist()
    return found


def _membership(sample: Sample) -> dict[str, Any] | Refused:
    [found] = required(sample.memberships)
    if found.status != "success":
        return Refused(found.status, found.code or "unusable", found.reason or "")
    return {"is_in_collection": found.is_in_collection, "probability": found.probability}


def _labels(sample: Sample) -> list[dict[str, Any]]:
    return [dataclasses.asdict(label) for label in required(sample.labelings)[0]]


def _masks(sample: Sample, source: str) -> list[dict[str, Any]]:
    return [_region(region) for region in sample.regions if region.source == source]


def _region(region: Region) -> dict[str, Any]:
    mask = {} if region.mask is None else {"mask": to_rle(region.mask)}
    return {"label": region.kind, "score": region.score, "bbox": list(region.box), **mask}
