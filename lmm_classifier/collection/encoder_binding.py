"""Embedding types and the encoders that make them: what binds a classifier to its own vectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast, get_args

from lmm_classifier import registry
from lmm_classifier.collection.training_set import EmbeddingPart
from lmm_classifier.errors import CollectionError, ConfigError, EncoderMismatchError
from lmm_classifier.models.loading import load_encoder
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.options import Device, Dtype
from lmm_classifier.regions import TargetName
from lmm_classifier.types import EncoderContract

Encoders = Mapping[str, ModelSpec]
_SERVED: Encoders = {
    "clip": ModelSpec("clip"),
    "dino_v2": ModelSpec("dinov2"),
    "dino_v3": ModelSpec("dinov3"),
    "dino_v3_patch": ModelSpec("dinov3-patch"),
}
"""The embedding types of the collections service, where settings name no other encoder for them."""
_TARGETS: tuple[TargetName, ...] = get_args(TargetName)


def parse_encoders(texts: list[str] | tuple[str, ...]) -> dict[str, ModelSpec]:
    """`TYPE`, `TYPE=FAMILY` or `TYPE=FAMILY=WEIGHTS`, such as "clip" or "mine=onnx=./mine.yaml".

    Raises:
        ConfigError: there is no such encoder.
    """
    encoders: dict[str, ModelSpec] = {}
    for text in texts:
        name, family, weights = [*text.split("=", 2), "", ""][:3]
        encoders[name] = ModelSpec(family, weights) if family else _by_name(name)
        try:
            registry.check("encoder", encoders[name].family)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    return encoders


def bound(embedding_type: str, dimensionality: int, encoders: Encoders) -> EmbeddingPart:
    """A part of vectors that came from elsewhere, bound to the encoder that settings name for it, if any.

    Raises:
        CollectionError: that encoder makes vectors of another length.
        ModelError: it cannot be opened.
    """
    if embedding_type not in encoders:
        return EmbeddingPart(embedding_type, dimensionality)
    contract = load_encoder(encoders[embedding_type]).contract
    if contract.dim != dimensionality:
        raise CollectionError(
            f"the vectors of {embedding_type!r} have {dimensionality} dimensions, those of encoder "
            f"{contract.name} {contract.weights} have {contract.dim}"
        )
    return part_of(embedding_type, contract)


def part_of(embedding_type: str, contract: EncoderContract) -> EmbeddingPart:
    """A part whose vectors an encoder of this contract made."""
    weights = contract.weights
    if weights and Path(weights).exists():
        weights = str(Path(weights).resolve())  # the store may be used from another folder
    return EmbeddingPart(
        embedding_type,
        contract.dim,
        contract.fingerprint,
        contract.name,
        weights,
        contract.revision,
        contract.dtype,
    )


def encoder_of(part: EmbeddingPart, encoders: Encoders, device: Device) -> ModelSpec:
    """The encoder to open for a part: as settings say, as the training did, or as the name is known.

    Raises:
        ConfigError: nothing says which.
    """
    if part.embedding_type in encoders:
        return encoders[part.embedding_type]
    if part.family:
        dtype, revision = cast("Dtype", part.dtype or "auto"), part.revision or "main"
        return ModelSpec(part.family, part.weights, revision, device, dtype)
    return replace(_by_name(part.embedding_type), device=device)


def check_encoder(part: EmbeddingPart, contract: EncoderContract, of: str) -> None:
    """Compare an opened encoder with what a classifier is bound to.

    Raises:
        EncoderMismatchError: it is another one, or makes vectors of another length.
    """
    if contract.dim != part.dimensionality:
        raise EncoderMismatchError(
            f"{of} takes vectors {part.embedding_type!r} with {part.dimensionality} dimensions, those of "
            f"encoder {contract.name} {contract.weights} have {contract.dim}"
        )
    if part.fingerprint and part.fingerprint != contract.fingerprint:
        raise EncoderMismatchError(
            f"{of} was trained on vectors of the encoder with fingerprint {part.fingerprint}, "
            f"{contract.name} {contract.weights} has {contract.fingerprint}; name that encoder for "
            f"{part.embedding_type!r}, or train again"
        )


def check_target(name: str) -> TargetName:
    """A region by its name.

    Raises:
        CollectionError: there is no such region.
    """
    if name not in _TARGETS:
        raise CollectionError(f"derivative type {name[:80]!r} is none of {', '.join(_TARGETS)}")
    return name


def _by_name(embedding_type: str) -> ModelSpec:
    if embedding_type in _SERVED:
        return _SERVED[embedding_type]
    if embedding_type in registry.names("encoder"):
        return ModelSpec(embedding_type)
    raise ConfigError(
        f"nothing says which encoder makes {embedding_type!r}; name it: {embedding_type}=FAMILY=WEIGHTS"
    )
