"""Wherever training data is, as training sets: the one entry point for reading it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from lmm_classifier.collection.encoder_binding import Encoders
from lmm_classifier.collection.sources.http import Service
from lmm_classifier.collection.sources.local import array_sets, photo_sets
from lmm_classifier.collection.training_set import SkippedCollection, TrainingSet
from lmm_classifier.errors import CollectionError, ConfigError
from lmm_classifier.fetch import DEFAULT_LIMITS, FetchLimits
from lmm_classifier.regions import RegionSelector


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """How a source is read.

    Attributes:
        encoders: embedding type -> its encoder: what makes the vectors of photos, and what vectors that are
            there already are bound to.
        embedding_type: what the vectors of an `.npz` file are called.
        embedding_types: collection of a service -> embedding type, where it is not the one of its focus.
        where: the part of a photo. A classifier keeps the target alone, so nothing else that decides the
            pixels may be set.
        only: collections to train; empty: all.
        limits: of each answer of a service.
    """

    encoders: Encoders = field(default_factory=dict)
    embedding_type: str | None = None
    embedding_types: Mapping[str, str] = field(default_factory=dict)
    where: RegionSelector = field(default_factory=RegionSelector)
    only: tuple[str, ...] = ()
    limits: FetchLimits = DEFAULT_LIMITS


def read_source(
    source: str, options: SourceOptions, notes: list[str]
) -> Iterator[TrainingSet | SkippedCollection]:
    """The collections of a service (a URL), of an `.npz` file, or of labelled photos (folder, CSV, JSONL).

    Args:
        source: which.
        options: how.
        notes: takes a sentence for each photo that is left out of all collections.

    Raises:
        LmmClassifierError: it cannot be read as a whole, or lacks a collection that is asked for.
    """
    _check_where(options.where)
    if "://" in source:
        if options.embedding_type is not None:
            raise ConfigError("a service says itself which embedding type a collection has; --use overrides")
        service = Service(source, options.encoders, options.embedding_types, options.only, options.limits)
        yield from service.collections()
        return
    if options.embedding_types:
        raise ConfigError("--use is for the collections of a service; name what photos are encoded with")
    seen: set[str] = set()
    for item in _local(Path(source), options, notes):
        seen.add(item.collection)
        if not options.only or item.collection in options.only:
            yield item
    if missing := sorted(set(options.only) - seen):
        raise CollectionError(f"{source} has no collection {missing[0]!r}")


def _check_where(where: RegionSelector) -> None:
    """What a photo is asked with later is the target and the detectors; the training must have no more."""
    kept = RegionSelector(where.target, on_missing=where.on_missing, persons=where.persons, faces=where.faces)
    for name in ("face_context", "prominence", "padding", "crop_policy"):
        if getattr(where, name) != getattr(kept, name):
            raise ConfigError(
                f"a classifier keeps its target, not `{name}`: photos would be cut differently later"
            )


def _local(
    source: Path, options: SourceOptions, notes: list[str]
) -> Iterator[TrainingSet | SkippedCollection]:
    if source.suffix.lower() == ".npz":
        return array_sets(source, options.encoders, options.embedding_type, options.where.target)
    if options.embedding_type is not None:
        raise ConfigError("photos are encoded here: --encoder NAME=FAMILY names the embedding type")
    where = replace(options.where, on_missing=options.where.on_missing or "skip")
    return photo_sets(source, options.encoders, where, notes)
