"""What is told of the collection classifiers of a store."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from lmm_classifier.collection.loaded_classifiers import shelf_of
from lmm_classifier.collection.store import DEFAULT_FOLDER, Snapshot
from lmm_classifier.errors import ClassifierFileError, UnknownCollectionError
from lmm_classifier.service.errors import HttpError
from lmm_classifier.service.schemas import CollectionEntry

log = logging.getLogger(__name__)

_TOLD = ("name", "derivative_type", "embedding_type", "dimensionality", "threshold")


def listed(store: Path | None) -> list[CollectionEntry]:
    """All collections, those that cannot be used included; none where there is no store.

    Raises:
        Refusal: the store is damaged.
    """
    try:
        snapshot = shelf_of(store or DEFAULT_FOLDER).store.snapshot()  # which the step keeps, too
    except UnknownCollectionError:
        return []
    except ClassifierFileError as error:
        log.warning("%s", error)
        told = "the collections cannot be read; the log tells more"
        raise HttpError(503, "unusable_store", told, {"retry-after": "60"}) from error
    return [_entry(snapshot, collection) for collection in snapshot.ids]


def describe(store: Path | None, collection: str) -> CollectionEntry:
    """One collection.

    Raises:
        Refusal: there is none, or the store is damaged.
    """
    for entry in listed(store):
        if entry.collection_id == collection:
            return entry
    raise HttpError(404, "unknown_collection", "there is no such collection")


def _entry(snapshot: Snapshot, collection: str) -> CollectionEntry:
    try:
        snapshot.version(collection)
        stored: dict[str, Any] = snapshot.metadata(collection)
    except ClassifierFileError:
        return CollectionEntry(collection_id=collection, name=None, usable=False)
    metrics: dict[str, float | int | None] = {
        k: v for k, v in (stored.get("metrics") or {}).items() if isinstance(v, int | float)
    }
    told = {key: stored.get(key) for key in _TOLD}
    return CollectionEntry(collection_id=collection, usable=True, metrics=metrics, **told)
