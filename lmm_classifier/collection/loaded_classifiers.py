"""The classifiers of a store, stacked: one matrix product decides all collections of one kind of vector."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lmm_classifier.collection.artifact import ClassifierArtifact, read_model
from lmm_classifier.collection.encoder_binding import check_encoder, encoder_of
from lmm_classifier.collection.estimators import DoubleArray, Linear, probabilities
from lmm_classifier.collection.store import Snapshot, Store
from lmm_classifier.errors import (
    ClassifierFileError,
    CollectionError,
    ConfigError,
    EncoderMismatchError,
    ModelError,
    UnknownCollectionError,
)
from lmm_classifier.models.loading import load_encoder
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.options import Device
from lmm_classifier.regions import TargetName
from lmm_classifier.types import FloatArray

NamedEncoders = tuple[tuple[str, ModelSpec], ...]
Refusal = CollectionError | ConfigError | EncoderMismatchError | ModelError
_REFUSALS = (CollectionError, ConfigError, EncoderMismatchError, ModelError)
_KEPT = 64  # stacks of one store: one per set of collections that is asked for
_TRIES = 3  # a training may replace files between two looks at the store


@dataclass(frozen=True, slots=True, eq=False)
class StackedLinear:
    """c classifiers of the same region and the same encoders.

    Attributes:
        region: what they look at.
        encoders: of the parts of a vector, in order.
        versions: the c classifiers.
        weights, intercepts: float64 (c, d) and (c,).
        slopes, offsets: float64 (c,), of the calibration.
    """

    region: TargetName
    encoders: tuple[ModelSpec, ...]
    versions: tuple[ClassifierArtifact, ...]
    weights: DoubleArray
    intercepts: DoubleArray
    slopes: DoubleArray
    offsets: DoubleArray

    @classmethod
    def of(
        cls, versions: Sequence[ClassifierArtifact], models: Sequence[Linear], encoders: tuple[ModelSpec, ...]
    ) -> StackedLinear:
        """Stack classifiers that share region and encoders."""
        weights = np.stack([model.weights for model in models])
        intercepts = np.asarray([model.intercept for model in models])
        slopes, offsets = (np.asarray([getattr(v, name) for v in versions]) for name in ("slope", "offset"))
        region = versions[0].derivative_type
        return cls(region, encoders, tuple(versions), weights, intercepts, slopes, offsets)

    def probabilities(self, vectors: FloatArray) -> DoubleArray:
        """float64 (n, c) for vectors (n, d)."""
        return probabilities(vectors @ self.weights.T + self.intercepts, self.slopes, self.offsets)

    def vectors(self, embeddings: Sequence[Mapping[str, FloatArray]]) -> FloatArray:
        """float32 (n, d): the parts of each of n samples, joined.

        Args:
            embeddings: of each sample, encoder fingerprint -> float32 (1, d of the part).

        Raises:
            EncoderMismatchError: a sample has no vector of an encoder that these classifiers are bound to.
        """
        keys = [load_encoder(spec).contract.fingerprint for spec in self.encoders]
        for sample in embeddings:
            if missing := [key for key in keys if key not in sample]:
                raise EncoderMismatchError(
                    f"collection {self.versions[0].collection} is bound to the encoder with fingerprint "
                    f"{missing[0]}, the photo was embedded by {', '.join(sorted(sample)) or 'none'}"
                )
        return np.stack([np.concatenate([sample[key][0] for key in keys]) for sample in embeddings])


@dataclass(frozen=True, slots=True, eq=False)
class LoadedClassifiers:
    """The classifiers that were asked for.

    Attributes:
        stacks: those that can be used.
        refused: collection -> why it cannot be.
    """

    stacks: tuple[StackedLinear, ...]
    refused: Mapping[str, Refusal]

    @property
    def wanted(self) -> dict[TargetName, tuple[ModelSpec, ...]]:
        """Region -> the encoders whose vectors of it are needed, each once."""
        wanted: dict[TargetName, dict[ModelSpec, None]] = {}
        for stack in self.stacks:
            wanted.setdefault(stack.region, {}).update(dict.fromkeys(stack.encoders))
        return {region: tuple(specs) for region, specs in wanted.items()}


class StoreCache:
    """What is open of one store. Files that have changed are read again, the others are not. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder)
        self._lock = threading.Lock()
        self._models: dict[str, Linear] = {}
        self._loaded: OrderedDict[object, tuple[tuple[int, ...], LoadedClassifiers]] = OrderedDict()

    def classifiers(
        self, collections: tuple[str, ...] | None, encoders: NamedEncoders, device: Device
    ) -> LoadedClassifiers:
        """The classifiers of these collections, or of all, as they are now; encoders opened and compared.

        Raises:
            UnknownCollectionError: there is no store, or none for a collection that is named.
            ClassifierFileError, EncoderMismatchError, ModelError, ConfigError: one that is named cannot be
                used. Where all are meant, it is left to `LoadedClassifiers.refused`.
        """
        key = (collections, encoders, device)
        with self._lock:
            snapshot = self.store.snapshot()
            stamp, kept = self._loaded.get(key, ((), None))
            if kept is not None and stamp == snapshot.stamp:
                self._loaded.move_to_end(key)
                return kept
            for _ in range(_TRIES):
                classifiers = self._built(snapshot, collections, dict(encoders), device)
                if not classifiers.refused or self.store.snapshot() is snapshot:
                    break
                snapshot = self.store.snapshot()
            if collections is not None:
                for error in classifiers.refused.values():
                    raise error.with_traceback(None)
            if not any(
                isinstance(error, ModelError) for error in classifiers.refused.values()
            ):  # it may open later
                self._loaded[key] = (snapshot.stamp, classifiers)
                while len(self._loaded) > _KEPT:
                    self._loaded.popitem(last=False)
            return classifiers

    def _built(
        self,
        snapshot: Snapshot,
        collections: tuple[str, ...] | None,
        encoders: Mapping[str, ModelSpec],
        device: Device,
    ) -> LoadedClassifiers:
        refused: dict[str, Refusal] = {}
        groups: dict[
            tuple[TargetName, tuple[ModelSpec, ...], int], list[tuple[ClassifierArtifact, Linear]]
        ] = {}
        contracts: dict[object, Refusal | None] = {}
        for collection in snapshot.ids if collections is None else collections:
            try:
                version = snapshot.version(collection)
                model = self._model(snapshot.folder, version)
                specs = tuple(encoder_of(part, encoders, device) for part in version.parts)
                self._compare(version, specs, contracts)
            except UnknownCollectionError:
                raise
            except _REFUSALS as error:
                refused[collection] = error
            else:
                kind = (version.derivative_type, specs, version.dimensionality)
                groups.setdefault(kind, []).append((version, model))
        in_use = {v.sha256 for v in _versions(snapshot)}
        self._models = {sha256: model for sha256, model in self._models.items() if sha256 in in_use}
        stacks = [
            StackedLinear.of([version for version, _ in rows], [model for _, model in rows], specs)
            for (_, specs, _), rows in groups.items()
        ]
        return LoadedClassifiers(tuple(stacks), refused)

    def _model(self, folder: Path, version: ClassifierArtifact) -> Linear:
        key = version.sha256
        if key not in self._models:
            self._models[key] = read_model(folder, version)
        return self._models[key]

    def _compare(
        self, version: ClassifierArtifact, specs: Sequence[ModelSpec], known: dict[object, Refusal | None]
    ) -> None:
        """Open the encoder of each part and compare; what was found out is not found out again."""
        for part, spec in zip(version.parts, specs, strict=True):
            if (part, spec) not in known:
                try:
                    check_encoder(part, load_encoder(spec).contract, f"collection {version.collection}")
                    known[part, spec] = None
                except _REFUSALS as error:
                    known[part, spec] = error
            if refusal := known[part, spec]:
                raise refusal.with_traceback(None)


_shelves: dict[Path, StoreCache] = {}
_shelves_lock = threading.Lock()


def shelf_of(folder: Path) -> StoreCache:
    """The one shelf of a store in this process."""
    path = folder.expanduser().absolute()
    with _shelves_lock:
        return _shelves.setdefault(path, StoreCache(path))


def _versions(snapshot: Snapshot) -> Iterable[ClassifierArtifact]:
    for collection in snapshot.ids:
        try:
            yield snapshot.version(collection)
        except ClassifierFileError:  # it is refused, by name, wherever it is asked for
            continue
