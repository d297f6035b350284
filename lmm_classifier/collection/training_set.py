"""What a collection classifier is trained on, wherever it came from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lmm_classifier.corpus.split import split_of
from lmm_classifier.errors import CollectionError
from lmm_classifier.regions import TargetName
from lmm_classifier.types import BoolArray, FloatArray

_HELD_OUT = "held_out"
_SHARES = {_HELD_OUT: 0.2, "train": 0.8}
JOIN = "+"
"""Between the embedding types of a concatenated embedding, as the collections service writes it."""


@dataclass(frozen=True, slots=True)
class EmbeddingPart:
    """One embedding type in a vector, and the encoder that makes it.

    Attributes:
        embedding_type: its name in the collections service or the settings, such as "clip".
        dimensionality: how many numbers of the vector it has.
        fingerprint: of the encoder; "" where the vectors came without one.
        family, weights, revision, dtype: how to open that encoder; "" where it is not known.
    """

    embedding_type: str
    dimensionality: int
    fingerprint: str = ""
    family: str = ""
    weights: str = ""
    revision: str = ""
    dtype: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class TrainingSet:
    """The labelled vectors of one collection.

    Attributes:
        collection, name: what the service calls it; a label, where labels are collections.
        derivative_type: the part of a photo that the vectors are of.
        parts: the embedding types in a vector, in order.
        vectors: float32 (n, d); each part of a row has L2 norm 1.
        labels: bool (n,): whether the photo belongs to the collection.
        items: n ids, each once.
        warnings: what was left out, a sentence each.
    """

    collection: str
    name: str
    derivative_type: TargetName
    parts: tuple[EmbeddingPart, ...]
    vectors: FloatArray
    labels: BoolArray
    items: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    @property
    def embedding_type(self) -> str:
        """The names of the parts, joined."""
        return JOIN.join(part.embedding_type for part in self.parts)

    @property
    def held_out(self) -> BoolArray:
        """Bool (n,): which items no classifier of any version is ever trained on."""
        return np.asarray([is_held_out(item) for item in self.items], np.bool_)


@dataclass(frozen=True, slots=True)
class SkippedCollection:
    """A collection that could not be trained, and why.

    Attributes:
        collection, name: as for `TrainingSet`, as far as they are known.
        reason: one sentence.
    """

    collection: str
    name: str
    reason: str


def is_held_out(item: str) -> bool:
    """Whether an item belongs to the 20 % that classifiers compete on: a function of its id alone."""
    return split_of(hashlib.sha256(item.encode("utf-8", "surrogateescape")).hexdigest(), _SHARES) == _HELD_OUT


def unit_rows(vectors: npt.ArrayLike, of: str) -> FloatArray:
    """Vectors as an encoder gives them: float32 (n, d), each row of L2 norm 1.

    Raises:
        CollectionError: they are no (n, d) finite numbers, or a row has no direction.
    """
    try:
        rows = np.asarray(vectors, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise CollectionError(f"{of}: the vectors are not of one length, or no numbers") from error
    if rows.ndim != 2 or 0 in rows.shape:
        raise CollectionError(f"{of}: the vectors must be (n, d), they are {rows.shape}")
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not (np.isfinite(norms) & (norms > 0)).all():
        raise CollectionError(f"{of}: a vector holds no finite numbers, or nothing but zeros")
    return np.asarray(rows / norms, np.float32)
