"""Checkpoints on this machine: which are here, fetching them, and whether they are still what they were.

Nothing is loaded into memory. The hub's own cache is used, or a folder laid out like it, with the library's
environment variables (HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE).
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import get_cached_repo_tree, snapshot_download
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import CachedRepoTreeNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects

from lmm_classifier.errors import ModelUnavailableError
from lmm_classifier.models.runtime.default_checkpoints import Task, default_checkpoints, default_weights
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.registry import CHECKPOINT_FILES

CACHE = Path(HF_HUB_CACHE)
SHIPPED = Path(__file__).parents[2] / "checkpoints"
_WEIGHTS = (".safetensors", ".onnx")
_LFS, _GIT = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint of the hub that settings or defaults ask for.

    Attributes:
        family: whose weights they are.
        hub_id: "owner/name".
        revision: branch, tag or commit that is asked for.
        licence: of a default; "" where it is only on the model card.
        files: patterns of what is needed of it.
        cache_dir: where it is kept; None: in the hub's cache.
    """

    family: str
    hub_id: str
    revision: str
    licence: str = ""
    files: tuple[str, ...] = CHECKPOINT_FILES
    cache_dir: Path | None = None

    def folder(self) -> Path | None:
        """Where it is on this machine, named by its commit, whole or not; None if nothing of it is here."""
        try:
            return _snapshot(self, local_files_only=True)
        except LocalEntryNotFoundError as error:  # of one it knows to be incomplete, newer versions say where
            incomplete = getattr(error, "snapshot_path", None)
            return Path(incomplete) if incomplete else None

    def missing(self) -> tuple[str, ...]:
        """Files of weights that a download which was cut off has left out; none where nothing is here.

        Their names, where the hub's library kept the listing of the commit or an index of weights names its
        parts; else the patterns of which there is no file, or the digests of the files that were begun.
        """
        folder = self.folder()
        if folder is None:
            return ()
        here = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        wanted = filter_repo_objects(self._listed(), allow_patterns=list(self.files))
        named = {name for name in wanted if name.endswith(_WEIGHTS)}
        named |= {part for index in folder.glob("*.index.json") for part in _parts_of(index)}
        unmatched = [p for p in self.files if p.endswith(_WEIGHTS) and not fnmatch.filter(here, p)]
        blobs = folder.parents[1] / "blobs"
        begun = {path.name.partition(".")[0] for path in blobs.glob("*.incomplete")}
        unfinished = [digest for digest in begun if not (blobs / digest).exists()]
        return tuple(sorted(named - here or unmatched or unfinished))

    def _listed(self) -> list[str]:
        """All files of the commit that is here, as far as the hub's library remembers them."""
        try:
            files = get_cached_repo_tree(self.hub_id, revision=self.revision, cache_dir=_cache_of(self))
        except CachedRepoTreeNotFoundError:
            return []
        return [file.path for file in files]


def defaults(tasks: Sequence[Task]) -> tuple[Checkpoint, ...]:
    """The checkpoints of the families' defaults for some tasks; for all if none is named."""
    return tuple(
        Checkpoint(family, entry.hub_id or entry.weights, "main", entry.licence, entry.files)
        for task, family, entry in default_checkpoints()
        if not tasks or task in tasks
    )


def wanted_by(specs: Iterable[ModelSpec]) -> tuple[Checkpoint, ...]:
    """The checkpoints of the hub that some models mean; local and shipped ones need no fetching."""
    published = {entry.weights: entry for _, _, entry in default_checkpoints()}
    found: dict[Checkpoint, None] = {}
    for spec in specs:
        weights = spec.weights or default_weights(spec.family)
        default = published.get(weights)
        hub_id = default.hub_id if default and default.hub_id else weights
        if hub_id.count("/") == 1 and not hub_id.startswith((".", "/", "~")):
            licence, files = (default.licence, default.files) if default else ("", CHECKPOINT_FILES)
            where = spec.cache_dir
            found[Checkpoint(spec.family, hub_id, spec.revision, licence, files, where)] = None
    return tuple(found)


def fetch(checkpoint: Checkpoint) -> Path:
    """Download what is missing of a checkpoint; a connection that breaks is taken up where it was.

    Returns:
        the folder, named by the commit, which can be written into settings as `revision`.

    Raises:
        ModelUnavailableError: the hub cannot be reached, or does not give it to this user.
    """
    try:
        return _snapshot(checkpoint)
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelUnavailableError(
            f"model {checkpoint.hub_id!r} ({checkpoint.revision}) cannot be fetched: {reason}"
        ) from error


def _snapshot(checkpoint: Checkpoint, local_files_only: bool = False) -> Path:
    found = snapshot_download(
        checkpoint.hub_id,
        revision=checkpoint.revision,
        allow_patterns=list(checkpoint.files),
        local_files_only=local_files_only,
        cache_dir=_cache_of(checkpoint),
    )
    return Path(str(found))


def _cache_of(checkpoint: Checkpoint) -> Path | None:
    return checkpoint.cache_dir.expanduser() if checkpoint.cache_dir else None


def _parts_of(index: Path) -> set[str]:
    """The files that an index of weights names; none if it cannot be read, which opening it will say."""
    try:
        return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return set()


def problems_of(folder: Path) -> Iterator[str]:
    """What is wrong with the files of a fetched checkpoint: each is named by the digest it must have.

    The hub's cache calls a large file by its SHA-256 and a small one by its git object id.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            continue
        blob = path.resolve()
        if not blob.is_file():
            yield f"{path} points to nothing: fetch it again"
        elif _LFS.fullmatch(blob.name):
            with blob.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != blob.name:
                    yield f"{path} is damaged: delete {blob} and fetch it again"
        elif _GIT.fullmatch(blob.name):
            content = blob.read_bytes()
            header = f"blob {len(content)}\0".encode()
            if hashlib.sha1(header + content, usedforsecurity=False).hexdigest() != blob.name:
                yield f"{path} is damaged: delete {blob} and fetch it again"
        else:
            yield f"{path} has no digest to compare with: it was not put there by the hub's cache"


def size_of(folder: Path) -> int:
    """Bytes of a checkpoint on the disk."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
