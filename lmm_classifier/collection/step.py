"""image -> memberships. Not in steps/: it is made of other steps, which do not know of each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, field_validator
from pydantic.dataclasses import dataclass

from lmm_classifier import registry
from lmm_classifier.collection.artifact import ClassifierArtifact
from lmm_classifier.collection.loaded_classifiers import LoadedClassifiers, Refusal, StackedLinear, shelf_of
from lmm_classifier.collection.region_embeddings import KINDS, looked_at
from lmm_classifier.collection.store import DEFAULT_FOLDER, Store, natural
from lmm_classifier.errors import (
    ClassifierFileError,
    ConfigError,
    EncoderMismatchError,
    ModelError,
)
from lmm_classifier.models.base import input_size_of
from lmm_classifier.models.loading import load_encoder
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.options import Device
from lmm_classifier.pipeline import Step
from lmm_classifier.regions import FACES, PERSONS, TargetName
from lmm_classifier.types import Membership, MembershipCode, Sample


def _as_text(value: Any) -> Any:
    return str(value) if type(value) is int else value


def _as_pairs(value: Any) -> Any:
    return tuple(value.items()) if isinstance(value, Mapping) else value


CollectionId = Annotated[str, BeforeValidator(_as_text), Field(min_length=1)]
_NamedEncoders = Annotated[tuple[tuple[str, ModelSpec], ...], BeforeValidator(_as_pairs)]


@dataclass(frozen=True, config={"extra": "forbid"})
class Classify(Step):
    """Say to which collections a photo belongs: each looks where, and at the vectors, it was trained on.

    Each region is looked for once per photo, and encoded once per encoder, however many collections there
    are. A region that `focus` has chosen before must be the one that the collections are about.

    Attributes:
        store: folder of the trained classifiers.
        collections: which; None: all of the store, of which one that cannot be used is an "error" in the
            answer. One that is named must be usable.
        target: the region that is expected; collections that are about another one are an error.
        encoders: embedding type -> the encoder that makes it, where it is not the one of the training.
        device: of the other encoders.
        persons, faces: the detectors.
    """

    name: ClassVar[str] = "classify"
    requires: ClassVar[frozenset[str]] = frozenset({"image", "regions"})
    provides: ClassVar[frozenset[str]] = frozenset({"memberships"})

    store: Path = DEFAULT_FOLDER
    collections: Annotated[tuple[CollectionId, ...], Field(min_length=1)] | None = None
    target: TargetName | None = None
    encoders: _NamedEncoders = ()
    device: Device = "auto"
    persons: ModelSpec = PERSONS
    faces: ModelSpec = FACES

    @field_validator("encoders")
    @classmethod
    def _registered(cls, encoders: _NamedEncoders) -> _NamedEncoders:
        for _, spec in encoders:
            registry.check("encoder", spec.family)
        return encoders

    def load(self) -> None:
        """Open store and encoders.

        Raises:
            LmmClassifierError: as `StoreCache.classifiers`; also if no collection of the store can be used.
        """
        classifiers = self._bank()
        if classifiers.refused and not classifiers.stacks:
            raise next(iter(classifiers.refused.values())).with_traceback(None)

    def resolution(self) -> int | None:
        wanted = self._bank().wanted
        sizes = [input_size_of(load_encoder(spec)) for specs in wanted.values() for spec in specs]
        known = [size for size in sizes if size is not None]
        if len(known) < len(sizes) or wanted.keys() & KINDS.keys():  # a region may be a small part of it
            return None
        return max(known, default=0)

    def models(self) -> tuple[ModelSpec, ...]:
        return (self.persons, self.faces, *(spec for _, spec in self.encoders))

    def run(self, batch: Sequence[Sample]) -> list[Sample]:
        if not batch:
            return []
        classifiers = self._bank()
        seen = looked_at(batch, classifiers.wanted, self.persons, self.faces)
        store = shelf_of(self.store).store
        found = [[_refused(c, error, store) for c, error in classifiers.refused.items()] for _ in batch]
        for stack in classifiers.stacks:
            for into, more in zip(found, decide(stack, seen[stack.region]), strict=True):
                into.extend(more)
        return [
            replace(sample, memberships=tuple(sorted(some, key=lambda m: natural(m.collection))))
            for sample, some in zip(batch, found, strict=True)
        ]

    def _bank(self) -> LoadedClassifiers:
        classifiers = shelf_of(self.store).classifiers(self.collections, self.encoders, self.device)
        for stack in classifiers.stacks:
            if self.target not in (None, stack.region):
                raise ConfigError(
                    f"collection {stack.versions[0].collection} is about {stack.region}, not about target "
                    f"{self.target}; leave the target out"
                )
        return classifiers


def decide(stack: StackedLinear, seen: Sequence[Sample]) -> list[list[Membership]]:
    """What the classifiers of a stack say of each sample, whose region was found and encoded, or skipped.

    Raises:
        EncoderMismatchError: a sample was encoded by another encoder than they are bound to.
    """
    looked = [sample for sample in seen if sample.skipped is None]
    vectors = stack.vectors([sample.embeddings for sample in looked]) if looked else None
    rows = iter([] if vectors is None else stack.probabilities(vectors).tolist())
    return [
        _skipped(stack.versions, sample) if sample.skipped else _said(stack.versions, sample, next(rows))
        for sample in seen
    ]


def _said(versions: Sequence[ClassifierArtifact], sample: Sample, row: Sequence[float]) -> list[Membership]:
    target = sample.target
    box = sample.view
    fallback = target.fallback if target else None
    found = []
    for version, p in zip(versions, row, strict=True):
        low, high = version.abstain or (version.threshold, version.threshold)
        unsure = version.abstain is not None and low <= p <= high
        found.append(
            Membership(
                version.collection,
                version.name,
                "success",
                None if unsure else p >= version.threshold,
                p,
                version.threshold,
                version.derivative_type,
                box,
                fallback,
            )
        )
    return found


def _skipped(versions: Sequence[ClassifierArtifact], sample: Sample) -> list[Membership]:
    skip = sample.skipped
    code: MembershipCode = "no_person" if skip and skip.code == "no_person" else "no_face"
    reason = skip.reason if skip else ""
    return [
        Membership(
            version.collection,
            version.name,
            "skipped",
            region=version.derivative_type,
            code=code,
            reason=f"{reason}, and collection {version.collection} ({version.name}) is about "
            f"{version.derivative_type}",
        )
        for version in versions
    ]


def _refused(collection: str, error: Refusal, store: Store) -> Membership:
    code: MembershipCode = "unusable"
    if isinstance(error, ClassifierFileError):
        code = "bad_classifier_file"
    elif isinstance(error, EncoderMismatchError):
        code = "encoder_mismatch"
    elif isinstance(error, ModelError):
        code = "model_unavailable"
    entry = store.snapshot().raw.get(collection)
    name = entry.get("name") if isinstance(entry, dict) else None
    return Membership(
        collection, name if isinstance(name, str) else "", "error", code=code, reason=str(error)
    )
