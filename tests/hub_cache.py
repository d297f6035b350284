"""Checkpoints in a cache, laid out as the hub's own library lays it out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def git_id(content: bytes) -> str:
    header = f"blob {len(content)}\0".encode()
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()


def write_cached(
    cache: Path, hub_id: str, files: Mapping[str, bytes], ref: str = "main", commit: str = COMMIT
) -> Path:
    """One checkpoint: large files under their SHA-256, small ones under their git object id.

    Returns:
        the folder of the commit.
    """
    repo = cache / f"models--{hub_id.replace('/', '--')}"
    snapshot = repo / "snapshots" / commit
    for folder in (repo / "refs", repo / "blobs"):
        folder.mkdir(parents=True, exist_ok=True)
    (repo / "refs" / ref).write_text(commit)
    for name, content in files.items():
        large = name.endswith((".safetensors", ".onnx"))
        blob = repo / "blobs" / (hashlib.sha256(content).hexdigest() if large else git_id(content))
        blob.write_bytes(content)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(blob)
    return snapshot


def files_in(folder: str | Path) -> dict[str, bytes]:
    """All files of a folder by their names in it."""
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
