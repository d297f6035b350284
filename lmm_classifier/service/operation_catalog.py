"""The documented operations, with the models that settings give them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

from lmm_classifier import registry
from lmm_classifier.api.classification import summarise
from lmm_classifier.api.hybrid_classifier import HybridClassifier
from lmm_classifier.config.pipeline import PipelineConfig
from lmm_classifier.errors import ConfigError
from lmm_classifier.masks import to_rle
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.service.operations import WHOLE, Collections, Operation, OperationError, Targets
from lmm_classifier.steps.embed import Embed
from lmm_classifier.types import Region, Sample, required

_EVERYWHERE: Targets = ("whole_image", "prominent_person", "prominent_face")
_SOMEBODY: Targets = ("prominent_person", "prominent_face")


def operations(classifier: HybridClassifier) -> dict[str, Operation]:
    """All that a service for this classifier offers, by name. Opens no model.

    Raises:
        ConfigError: its settings name an operation or an option that there is not.
    """
    settings = classifier.config.service
    offered = {operation.name: operation for operation in _documented(classifier)}
    for name, options in settings.operations.items():
        where = f"service.operations.{name}"
        if name not in offered:
            raise ConfigError(
                f"{where}: there is no such operation{registry.did_you_mean(name, tuple(offered))}"
            )
        operation = offered[name]
        if options is None:
            del offered[name]
        elif operation.step is None:
            raise ConfigError(f"{where} takes no options")
        else:
            try:
                offered[name] = dataclasses.replace(operation, options={**operation.options, **options})
            except ConfigError as error:
                raise ConfigError(f"{where}: {error}") from error
    return offered


def _documented(classifier: HybridClassifier) -> Iterator[Operation]:
    config = classifier.config
    yield Operation(
        "detect_bounding_box",
        "Finds the most prominent person or face.",
        _SOMEBODY,
        None,
        {},
        (),
        config,
        lambda sample: list(sample.view),
    )
    siglip = next((step.encoder for step in classifier.steps_of(Embed)), ModelSpec("siglip"))
    for name, what, spec in (
        ("embed_clip_vit_b_32", "CLIP ViT-B/32", ModelSpec("clip")),
        ("embed_dino_v2", "DINOv2", ModelSpec("dinov2")),
        ("embed_dino_v3", "DINOv3", ModelSpec("dinov3")),
        ("embed_siglip", "SigLIP", siglip if siglip.family == "siglip" else ModelSpec("siglip")),
    ):
        description = f"Encodes the image as a vector of {what}."
        yield Operation(
            name, description, _EVERYWHERE, "embed", {"encoder": spec}, ("normalize",), config, _vector
        )
    yield Collections(
        "classify",
        "Says whether the image belongs to a collection, looking where its classifier was trained to.",
        _EVERYWHERE,
        "classify",
        {} if config.service.store is None else {"store": config.service.store},
        (),
        config,
        _membership,
    )
    yield from _told(classifier)
    yield from _seen(config)


def _told(classifier: HybridClassifier) -> Iterator[Operation]:
    config = classifier.config
    yield Operation(
        "describe_image",
        "Describes the image in words.",
        _EVERYWHERE,
        "caption",
        {"model": ModelSpec("blip")},
        ("max_length", "prompt"),
        config,
        lambda sample: required(sample.captions)[0],
    )
    yield Operation(
        "classify_hybrid",
        "Classifies the image by its neighbours, or as unknown; a second look decides doubtful cases.",
        WHOLE,
        None,
        {},
        (),
        config,
        partial(_classification, classifier),
        line=classifier.pipeline.steps,
    )


def _seen(config: PipelineConfig) -> Iterator[Operation]:
    yield Operation(
        "label_image",
        "Names what is in the image, best first.",
        _EVERYWHERE,
        "label",
        {"model": ModelSpec("image-classifier")},
        ("top_k", "min_score"),
        config,
        lambda sample: [dataclasses.asdict(label) for label in required(sample.labelings)[0]],
    )
    yield Operation(
        "segment",
        "Cuts out what points and boxes mean.",
        WHOLE,
        "segment",
        {},
        ("points", "negative_points", "box", "box_format", "prompts", "multimask", "min_score"),
        config,
        partial(_masks, source="segment"),
    )
    yield Operation(
        "segment_panoptic",
        "Divides the image into things and stuff.",
        WHOLE,
        "segment_panoptic",
        {},
        ("min_score", "fuse_stuff"),
        config,
        partial(_masks, source="segment_panoptic"),
    )


def _vector(sample: Sample) -> list[float]:
    [vectors] = sample.embeddings.values()
    found: list[float] = vectors[0].tolist()
    return found


def _membership(sample: Sample) -> dict[str, Any] | OperationError:
    [found] = required(sample.memberships)
    if found.status != "success":
        return OperationError(found.status, found.code or "unusable", _told_of(found.code))
    return {"is_in_collection": found.is_in_collection, "probability": found.probability}


def _told_of(code: str | None) -> str:
    """The reason of a membership names files; a client is told as much as helps it."""
    return {
        "no_person": "no person was found, and the collection is about persons",
        "no_face": "no face was found, and the collection is about faces",
    }.get(str(code), "the classifier of this collection cannot be used; the log tells more")


def _classification(classifier: HybridClassifier, sample: Sample) -> dict[str, Any]:
    return summarise(sample, classifier.thresholds).to_dict()


def _masks(sample: Sample, source: str) -> list[dict[str, Any]]:
    return [_region(region) for region in sample.regions if region.source == source]


def _region(region: Region) -> dict[str, Any]:
    mask = {} if region.mask is None else {"mask": to_rle(region.mask)}
    return {"label": region.kind, "score": region.score, "bbox": list(region.box), **mask}
