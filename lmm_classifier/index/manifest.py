"""manifest.json: what an index folder holds, which encoders made it, and the digest of every file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from lmm_classifier.errors import IndexFolderError
from lmm_classifier.storage.atomic_files import FileRecord
from lmm_classifier.storage.checksummed_json import digest_of, dump_checksummed, load_checksummed
from lmm_classifier.types import EncoderContract

MANIFEST = "manifest.json"
SCHEMA_VERSION = 2  # 1 knew one encoder and kept a second copy of the vectors for exact search
EXACT = "Flat"
_Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """How a space is searched, and what was measured when that was chosen.

    Attributes:
        factory: FAISS factory string; "Flat" compares with every vector, straight from the shards.
        parameters: FAISS search parameters, such as "nprobe=32"; "" where there are none.
        refine: how many times k candidates are compared with their exact vectors; 0 where exact anyway.
        k, queries: neighbours and held-out queries of the measurement; 0 where there was none.
        recall: share of the exact k nearest that were found.
        label_agreement: share of queries whose majority label among the k is that of exact search.
        bytes_per_vector: of the search structure, beside the stored vectors; 0 for "Flat".
    """

    factory: str = EXACT
    parameters: str = ""
    refine: _Count = 0
    k: _Count = 0
    queries: _Count = 0
    recall: Share = 1.0
    label_agreement: Share = 1.0
    bytes_per_vector: Annotated[float, Field(ge=0)] = 0.0


EXACTLY = OperatingPoint()


@dataclass(frozen=True, slots=True)
class Space:
    """The vectors that one encoder made of all images, and how they are searched."""

    encoder: EncoderContract
    search: OperatingPoint = EXACTLY


@dataclass(frozen=True, slots=True)
class Manifest:
    """Contents of an index folder.

    Attributes:
        spaces: one per encoder, at least one; the first is searched unless another is asked for.
        count: n, number of images, each with a vector in every space.
        labels: label -> number of its images.
        files: path relative to the folder -> what it must be.
        skipped: code -> number of files that were not indexed; they are listed in failures.jsonl.
        metric: similarity the index is searched by.
        schema_version: version of this layout.
    """

    spaces: Annotated[tuple[Space, ...], Field(min_length=1)]
    count: _Count
    labels: Mapping[Any, _Count]  # str; but pydantic takes none with lone surrogates
    files: Mapping[str, FileRecord]
    skipped: Mapping[str, _Count]
    metric: Literal["cosine"] = "cosine"
    schema_version: int = SCHEMA_VERSION

    @property
    def encoders(self) -> tuple[EncoderContract, ...]:
        """The contracts of all spaces, in order."""
        return tuple(space.encoder for space in self.spaces)

    @property
    def fingerprints(self) -> list[str]:
        """Those of the encoders, in order."""
        return [encoder.fingerprint for encoder in self.encoders]

    @property
    def digest(self) -> str:
        """SHA-256 of the content: names this very state of the index."""
        return digest_of(self._body())

    def to_json(self) -> bytes:
        """The bytes of manifest.json."""
        return dump_checksummed(self._body())

    def _body(self) -> dict[str, Any]:
        return asdict(self) | {"fingerprints": self.fingerprints}


def read_manifest(folder: Path) -> Manifest:
    """Read and check manifest.json.

    Raises:
        IndexFolderError: missing, damaged, of another version, or contradicting itself.
    """
    path = folder / MANIFEST
    try:
        body = load_checksummed(path, SCHEMA_VERSION, "rebuild the index")
    except FileNotFoundError as error:
        raise IndexFolderError(
            f"{folder} is not an index: it has no {MANIFEST}; build one with `index build`"
        ) from error
    fingerprints = body.pop("fingerprints", None)
    try:
        manifest = _checker().validate_python(body)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise IndexFolderError(f"{path} is not a manifest of version {SCHEMA_VERSION}: {where}") from error
    if fingerprints != manifest.fingerprints:
        raise IndexFolderError(f"{path} contradicts itself: fingerprints {fingerprints!r}; rebuild the index")
    if sum(manifest.labels.values()) != manifest.count:
        raise IndexFolderError(
            f"{path} counts {manifest.count} vectors and {sum(manifest.labels.values())} labels; rebuild it"
        )
    return manifest


@cache
def _checker() -> TypeAdapter[Manifest]:
    """Made once: it takes longer than reading the file, which every batch of queries does."""
    return TypeAdapter(Manifest)
