"""JSON documents that carry their version and the digest of their own content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmm_classifier.errors import IndexFolderError


def digest_of(body: Mapping[str, Any]) -> str:
    """SHA-256 of a document without its seal: the same however it is laid out."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def dump_checksummed(body: Mapping[str, Any]) -> bytes:
    """A document as bytes: sorted, so equal documents are equal files."""
    sealed = {**body, "digest": digest_of(body)}
    return json.dumps(sealed, indent=2, sort_keys=True).encode() + b"\n"


def load_checksummed(path: Path, version: int, remedy: str) -> dict[str, Any]:
    """Read what `dump_checksummed` wrote.

    Args:
        path: the file.
        version: the `schema_version` it must have.
        remedy: what to do about a damaged one, as the end of a sentence.

    Raises:
        FileNotFoundError: there is none.
        IndexFolderError: it cannot be read, is no such document, damaged, or of another version.
    """
    try:
        body = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise IndexFolderError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise IndexFolderError(f"{path} is damaged: it is not valid JSON; {remedy}") from error
    found = body.get("schema_version") if isinstance(body, dict) else None
    if isinstance(found, int) and found != version:
        remedy = "upgrade lmm-classifier" if found > version else remedy
        raise IndexFolderError(f"{path} has schema version {found}, this program writes {version}; {remedy}")
    if not isinstance(body, dict) or body.pop("digest", None) != digest_of(body):
        raise IndexFolderError(f"{path} is damaged: its content does not match its digest; {remedy}")
    return body
