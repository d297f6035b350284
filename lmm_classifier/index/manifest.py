"""manifest.json: what an index folder holds, which encoders made it, and the digest of every file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from lmm_classifier.errors import IndexFolderError
from lmm_classifier.index.files import FileRecord
from lmm_classifier.types import EncoderContract

MANIFEST = "manifest.json"
SCHEMA_VERSION = 2  # 1 knew one encoder and kept a second copy of the vectors for exact search
EXACT = "Flat"
Count = Annotated[int, Field(ge=0)]
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
    refine: Count = 0
    k: Count = 0
    queries: Count = 0
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
    count: Count
    labels: Mapping[Any, Count]  # str; but pydantic takes none with lone surrogates
    files: Mapping[str, FileRecord]
    skipped: Mapping[str, Count]
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
        return _digest(json.loads(json.dumps(asdict(self))))

    def to_json(self) -> bytes:
        """The bytes of manifest.json: sorted, so equal manifests are equal files."""
        body = asdict(self) | {"digest": self.digest, "fingerprints": self.fingerprints}
        return json.dumps(body, indent=2, sort_keys=True).encode() + b"\n"


def read_manifest(folder: Path) -> Manifest:
    """Read and check manifest.json.

    Raises:
        IndexFolderError: missing, damaged, of another version, or contradicting itself.
    """
    path = folder / MANIFEST
    try:
        body = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise IndexFolderError(
            f"{folder} is not an index: it has no {MANIFEST}; build one with `index build`"
        ) from error
    except OSError as error:
        raise IndexFolderError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise IndexFolderError(f"{path} is not valid JSON; rebuild the index") from error
    return _checked(path, body)


def _checked(path: Path, body: Any) -> Manifest:
    if not isinstance(body, dict):
        raise IndexFolderError(f"{path} is not a manifest; rebuild the index")
    _check_version(path, body.get("schema_version"))
    digest, fingerprints = body.pop("digest", None), body.pop("fingerprints", None)
    if digest != _digest(body):
        raise IndexFolderError(f"{path} is damaged: its content does not match its digest; rebuild the index")
    try:
        manifest = TypeAdapter(Manifest).validate_python(body)
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


def _check_version(path: Path, version: object) -> None:
    if isinstance(version, int) and version != SCHEMA_VERSION:
        remedy = "upgrade lmm-classifier" if version > SCHEMA_VERSION else "rebuild the index"
        raise IndexFolderError(
            f"{path} has schema version {version}, this program writes {SCHEMA_VERSION}; {remedy}"
        )


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
