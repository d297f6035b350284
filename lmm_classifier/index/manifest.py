"""manifest.json: what an index folder holds, which encoder made it, and the digest of every file."""

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
SCHEMA_VERSION = 1
Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, slots=True)
class Manifest:
    """Contents of an index folder.

    Attributes:
        encoder: the contract of the encoder that made every vector.
        count: n, number of vectors.
        labels: label -> number of its vectors.
        files: path relative to the folder -> what it must be.
        skipped: code -> number of files that were not indexed; they are listed in failures.jsonl.
        metric: similarity the index is searched by.
        schema_version: version of this layout.
    """

    encoder: EncoderContract
    count: Count
    labels: Mapping[Any, Count]  # str; but pydantic takes none with lone surrogates
    files: Mapping[str, FileRecord]
    skipped: Mapping[str, Count]
    metric: Literal["cosine"] = "cosine"
    schema_version: int = SCHEMA_VERSION

    @property
    def digest(self) -> str:
        """SHA-256 of the content: names this very state of the index."""
        return _digest(asdict(self))

    def to_json(self) -> bytes:
        """The bytes of manifest.json: sorted, so equal manifests are equal files."""
        body = asdict(self) | {"digest": self.digest, "fingerprint": self.encoder.fingerprint}
        return json.dumps(body, indent=2, sort_keys=True).encode() + b"\n"


def read_manifest(folder: Path) -> Manifest:
    """Read and check manifest.json.

    Raises:
        IndexFolderError: missing, damaged, of a newer version, or contradicting itself.
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
    version = body.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise IndexFolderError(
            f"{path} has schema version {version}, newer than {SCHEMA_VERSION}; upgrade lmm-classifier"
        )
    digest, fingerprint = body.pop("digest", None), body.pop("fingerprint", None)
    if digest != _digest(body):
        raise IndexFolderError(f"{path} is damaged: its content does not match its digest; rebuild the index")
    try:
        manifest = TypeAdapter(Manifest).validate_python(body)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise IndexFolderError(f"{path} is not a manifest of version {SCHEMA_VERSION}: {where}") from error
    if fingerprint != manifest.encoder.fingerprint:
        raise IndexFolderError(f"{path} contradicts itself: fingerprint {fingerprint!r}; rebuild the index")
    if sum(manifest.labels.values()) != manifest.count:
        raise IndexFolderError(
            f"{path} counts {manifest.count} vectors and {sum(manifest.labels.values())} labels; rebuild it"
        )
    return manifest


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
