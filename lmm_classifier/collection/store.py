"""The store of collection classifiers: `best_models.json` beside the versions it chooses from.

    trained_classifiers/
      best_models.json              collection id -> the best version, written last, atomically
      collection_7_classifier_*     the versions, see artifact.py
      collection_7_comparison.json  all versions that competed when the best was last chosen

An entry has the documented keys (`model_file`, `derivative_type`, `embedding_type`, `dimensionality`) and all
others of `ClassifierArtifact`. Entries of older programs are understood as metadata: a bare file name means
CLIP vectors of the whole image.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmm_classifier.collection.artifact import (
    SCHEMA_VERSION,
    ClassifierArtifact,
    check_name,
    checked,
    stem_of,
    written,
)
from lmm_classifier.errors import (
    ClassifierFileError,
    CollectionError,
    IndexFolderError,
    UnknownCollectionError,
)
from lmm_classifier.registry import did_you_mean
from lmm_classifier.storage.atomic_files import replace_file
from lmm_classifier.storage.checksummed_json import load_checksummed
from lmm_classifier.storage.locks import locked

BEST = "best_models.json"
DEFAULT_FOLDER = Path("trained_classifiers")
_OLDEST = {"derivative_type": "whole_image", "embedding_type": "clip", "dimensionality": 512}
"""What a bare file name as an entry means: the program that wrote them knew nothing else."""
_REQUIRED = ("model_file", "derivative_type", "embedding_type")
_MAX_BYTES = 256 * 2**20
PATIENCE_S = 60.0  # that a training waits for another one to note down a result
_TRAIN = "make one with `lmm-classifier collections train`"


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """The store at one moment.

    Attributes:
        folder: of the store.
        raw: collection id -> entry as it stands in the file.
        stamp: names the state of the file; changes whenever it is replaced.
    """

    folder: Path
    raw: Mapping[str, Any]
    stamp: tuple[int, ...] = ()
    _checked: dict[str, ClassifierArtifact | ClassifierFileError] = field(default_factory=dict)

    @property
    def ids(self) -> tuple[str, ...]:
        """All collections, numbers by value and before names."""
        return tuple(sorted(self.raw, key=natural))

    def still(self, raw: Mapping[str, Any]) -> dict[str, ClassifierArtifact | ClassifierFileError]:
        """What was found out about the entries that other contents of the file have too."""
        return {key: found for key, found in self._checked.items() if raw.get(key) == self.raw[key]}

    def metadata(self, collection: str | int) -> dict[str, Any]:
        """What is stored of a collection; of an old entry, what it says or means.

        Raises:
            UnknownCollectionError: there is none (a FileNotFoundError).
            ClassifierFileError: the entry is of a wrong type or lacks a key (a ValueError).
        """
        key, where = str(collection), f"{self.folder / BEST}: collection {collection}"
        if key not in self.raw:
            near = did_you_mean(key, self.ids[:20]) if self.ids else f"; {_TRAIN}"
            raise UnknownCollectionError(f"{self.folder} has no classifier for collection {key!r}{near}")
        entry = self.raw[key]
        if isinstance(entry, str):
            return {"model_file": entry, **_OLDEST}
        if not isinstance(entry, dict):
            raise ClassifierFileError(f"{where} must be an object or a file name, it is {entry!r:.80}")
        for name in _REQUIRED:
            if not isinstance(entry.get(name), str):
                raise ClassifierFileError(f"{where} has no {name!r}; train it again")
        return dict(entry)

    def version(self, collection: str | int) -> ClassifierArtifact:
        """The classifier of a collection, ready to be opened.

        Raises:
            UnknownCollectionError: there is none.
            ClassifierFileError: the entry is damaged, or of an older program.
        """
        key = str(collection)
        if key not in self._checked:
            entry, where = self.metadata(key), f"{self.folder / BEST}: collection {key}"
            try:
                self._checked[key] = _version(entry, key, where)
            except ClassifierFileError as error:
                self._checked[key] = error
        found = self._checked[key]
        if isinstance(found, ClassifierFileError):
            raise found.with_traceback(None)
        return found


class Store:
    """Reads the store, again whenever `best_models.json` has been replaced. Safe for threads."""

    def __init__(self, folder: str | os.PathLike[str] = DEFAULT_FOLDER) -> None:
        self.folder = Path(folder).expanduser().absolute()
        self._lock = threading.Lock()
        self._kept = Snapshot(self.folder, {})

    def snapshot(self) -> Snapshot:
        """The store as it is now; the same object as before unless it changed.

        Raises:
            UnknownCollectionError: there is no store.
            ClassifierFileError: best_models.json is damaged.
        """
        path = self.folder / BEST
        with self._lock:
            try:
                with path.open("rb") as file:
                    stat = os.fstat(file.fileno())
                    stamp = (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
                    if stamp != self._kept.stamp:
                        raw = _parsed(file.read(_MAX_BYTES + 1), path)
                        self._kept = Snapshot(self.folder, raw, stamp, self._kept.still(raw))
            except FileNotFoundError as error:
                raise UnknownCollectionError(f"{self.folder} holds no {BEST}; {_TRAIN}") from error
            except OSError as error:
                raise CollectionError(f"{path}: {error.strerror}; check the path") from error
            return self._kept

    def metadata(self, collection: str | int) -> dict[str, Any]:
        """As `Snapshot.metadata`."""
        return self.snapshot().metadata(collection)

    def comparison(self, collection: str | int) -> dict[str, Any] | None:
        """The table of the versions that competed, best first; None where none is stored."""
        try:
            return load_checksummed(
                comparison_of(self.folder, str(collection)), SCHEMA_VERSION, "train again"
            )
        except FileNotFoundError:
            return None
        except IndexFolderError as error:
            raise ClassifierFileError(str(error)) from error

    def by_embedding_type(self) -> dict[str, dict[str, float | int | None]]:
        """Embedding type -> number of collections, and the mean of each of their stored figures."""
        snapshot = self.snapshot()
        figures: dict[str, list[Mapping[str, Any]]] = {}
        for collection in snapshot.ids:
            try:
                entry = snapshot.metadata(collection)
            except ClassifierFileError:  # it is listed as broken where collections are listed one by one
                continue
            figures.setdefault(entry["embedding_type"], []).append(entry.get("metrics") or {})
        return {name: _means(rows) for name, rows in sorted(figures.items())}


def comparison_of(folder: Path, collection: str) -> Path:
    """The file with the table of the versions that competed."""
    return folder / f"{stem_of(collection, '')}_comparison.json"


@contextmanager
def changing(folder: Path) -> Iterator[dict[str, Any]]:
    """The entries of `best_models.json`, to be changed; written back, whole, at the end.

    One program at a time: the others wait. What is not changed stays as it is, readable or not.

    Raises:
        CollectionError: another program does not finish, or the disk refuses.
        ClassifierFileError: the file is damaged: it is not overwritten.
    """
    path = folder / BEST
    in_use = CollectionError(f"{folder}: another training is writing there and does not finish")
    with locked(folder / f".{BEST}.lock", in_use, PATIENCE_S):
        try:
            before = path.read_bytes() if path.exists() else b"{}"
            entries = _parsed(before, path)
            yield entries
            if entries != _parsed(before, path):
                with written():
                    replace_file(path, json.dumps(entries, indent=2).encode() + b"\n")
        except OSError as error:
            raise CollectionError(f"{path}: {error.strerror or error}") from error


def natural(collection: str) -> tuple[int, int, str]:
    """Key to sort ids by: numbers by value, then names."""
    number = collection.isascii() and collection.isdigit() and len(collection) < 20
    return (0, int(collection), "") if number else (1, 0, collection)


def _version(entry: Mapping[str, Any], key: str, where: str) -> ClassifierArtifact:
    check_name(entry["model_file"], where)  # first: this message has the remedy for a pickle
    version = checked(dict(entry), where)
    if version.collection != key:
        raise ClassifierFileError(f"{where} is about collection {version.collection!r}; train it again")
    return version


def _parsed(content: bytes, path: Path) -> dict[str, Any]:
    try:
        if len(content) > _MAX_BYTES:
            raise ValueError
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ClassifierFileError(
            f"{path} is damaged: it is no valid JSON; put a copy of it back, or move it away and train again"
        ) from error
    if not isinstance(body, dict):
        raise ClassifierFileError(f"{path} is no map of collections; move it away and train again")
    return body


def _means(rows: list[Mapping[str, Any]]) -> dict[str, float | int | None]:
    means: dict[str, float | int | None] = {"collections": len(rows)}
    for name in ("accuracy", "macro_precision", "average_precision", "f1", "calibration_error"):
        known = [row[name] for row in rows if isinstance(row.get(name), int | float)]
        means[name] = sum(known) / len(known) if known else None
    return means
