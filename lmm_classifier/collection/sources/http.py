"""Training data from a collections service over HTTP.

    GET /collections.json
        [{"id": 7, "name": ..., "collection_focus": {...}}, ...]
    GET /collections/7/training_data.json?embedding_type=clip
        [{"embedding": [...], "label": 1, "photo_id": 3}, ...]

A focus is nested (`derivative_type: {name: ...}`) or flat (`derivative_type_name: ...`), and likewise for
`embedding_type`. An embedding type "a+b" is fetched part by part and joined on the photo's id.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import numpy as np

from lmm_classifier.collection.encoder_binding import Encoders, bound, check_target
from lmm_classifier.collection.sources.json_response import json_in
from lmm_classifier.collection.training_set import JOIN, SkippedCollection, TrainingSet, unit_rows
from lmm_classifier.errors import CollectionError, LmmClassifierError
from lmm_classifier.fetch import DEFAULT_LIMITS, FetchLimits, bearer, fetch
from lmm_classifier.regions import TargetName

TOKEN = "LMM_CLASSIFIER_COLLECTIONS_TOKEN"  # noqa: S105 -- the variable's name


@dataclass(frozen=True, slots=True)
class Service:
    """A collections service.

    Attributes:
        url: what `/collections.json` is appended to.
        encoders: embedding type -> the encoder that makes it, to bind classifiers to.
        embedding_types: collection -> embedding type, where it is not the one of its focus: "clip+dino_v2".
        only: collections to train; empty: all.
        limits: of each answer.
    """

    url: str
    encoders: Encoders = field(default_factory=dict)
    embedding_types: Mapping[str, str] = field(default_factory=dict)
    only: tuple[str, ...] = ()
    limits: FetchLimits = DEFAULT_LIMITS

    def collections(self) -> Iterator[TrainingSet | SkippedCollection]:
        """Each collection as the service lists it, its data fetched when it is reached.

        Raises:
            CollectionError: the list of collections is none, or lacks one that is asked for.
            FetchError: it cannot be fetched.
        """
        listed = self._get("collections.json")
        if isinstance(listed, dict):
            listed = listed.get("collections")
        if not isinstance(listed, list):
            raise CollectionError(f"{self.url}/collections.json is not a list of collections")
        ids = {str(entry.get("id")) for entry in listed if isinstance(entry, dict)}
        if missing := sorted(set(self.only) - ids):
            raise CollectionError(f"{self.url} has no collection {missing[0]!r}")
        for entry in listed:
            if not self.only or (isinstance(entry, dict) and str(entry.get("id")) in self.only):
                yield self._collection(entry)

    def _collection(self, entry: Any) -> TrainingSet | SkippedCollection:
        given = entry if isinstance(entry, dict) else {}
        number, name = given.get("id"), given.get("name")
        told = [str(value) if isinstance(value, int | str) else "?" for value in (number, name)]
        try:
            if type(number) is not int or not isinstance(name, str):
                raise CollectionError("its id must be a whole number and its name a text")
            region, embedding_type = _focus(given, self.embedding_types.get(str(number)))
            return self._training_set(number, name, region, embedding_type)
        except LmmClassifierError as error:
            return SkippedCollection(told[0], told[1], str(error))

    def _training_set(self, number: int, name: str, region: TargetName, embedding_type: str) -> TrainingSet:
        types = embedding_type.split(JOIN)
        found = [_records(self._data(number, one), f"collection {number}, {one}") for one in types]
        common = set.intersection(*(set(records) for records in found))
        items = [item for item in found[0] if item in common]
        if not items:
            raise CollectionError(f"no photo has all of {embedding_type}")
        labels = [[records[item][1] for item in items] for records in found]
        if any(one != labels[0] for one in labels[1:]):
            raise CollectionError(f"the parts of {embedding_type} label a photo differently")
        vectors = [
            unit_rows([records[item][0] for item in items], of=one)
            for one, records in zip(types, found, strict=True)
        ]
        parts = [bound(one, rows.shape[1], self.encoders) for one, rows in zip(types, vectors, strict=True)]
        lost = len(set().union(*found)) - len(items)
        return TrainingSet(
            str(number),
            name,
            region,
            tuple(parts),
            np.concatenate(vectors, axis=1),
            np.asarray(labels[0], np.bool_),
            tuple(items),
            (f"{lost} photos lack a part of {embedding_type} and are left out",) if lost else (),
        )

    def _data(self, number: int, embedding_type: str) -> Any:
        return self._get(
            f"collections/{number}/training_data.json?embedding_type={quote(embedding_type, safe='')}"
        )

    def _get(self, path: str) -> Any:
        headers = bearer(os.environ.get(TOKEN, ""), TOKEN)
        url = f"{self.url.rstrip('/')}/{path}"
        return json_in(fetch(url, limits=self.limits, headers=headers), url)


def _focus(entry: Mapping[str, Any], embedding_type: str | None) -> tuple[TargetName, str]:
    focus = entry.get("collection_focus") or entry.get("focus")
    if not isinstance(focus, dict):
        raise CollectionError("it has no focus")
    region = _named(focus, "derivative_type")
    chosen = embedding_type or _named(focus, "embedding_type")
    if not isinstance(region, str) or not isinstance(chosen, str) or not all(chosen.split(JOIN)):
        raise CollectionError("its focus names no derivative type and embedding type")
    return check_target(region), chosen


def _named(focus: Mapping[str, Any], key: str) -> Any:
    nested = focus.get(key)
    if isinstance(nested, dict):
        return nested.get("name")
    return nested if isinstance(nested, str) else focus.get(f"{key}_name")


def _records(body: Any, of: str) -> dict[str, tuple[list[float], bool]]:
    """Photo id -> vector, label. Equal records count once."""
    if isinstance(body, dict):
        body = next((value for value in body.values() if isinstance(value, list)), None)
    if not isinstance(body, list):
        raise CollectionError(f"{of}: the training data is no list of records")
    records: dict[str, tuple[list[float], bool]] = {}
    for number, record in enumerate(body):
        if not isinstance(record, dict) or not {"embedding", "label", "photo_id"} <= record.keys():
            raise CollectionError(f"{of}: record {number} lacks embedding, label or photo_id")
        vector, label, item = record["embedding"], record["label"], record["photo_id"]
        if label not in (0, 1) or not isinstance(vector, list) or not isinstance(item, int | str):
            raise CollectionError(f"{of}: record {number} has no list of numbers, label 0 or 1, and photo id")
        first = records.setdefault(str(item), (vector, bool(label)))
        if first != (vector, bool(label)):
            raise CollectionError(f"{of}: photo {item} comes twice, with another vector or label")
    if len({len(vector) for vector, _ in records.values()}) > 1:
        raise CollectionError(f"{of}: the vectors have different dimensions")
    return records
