"""A row per photo of a labelling run, as a table that any reader of Parquet opens."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import attrgetter
from typing import Any

import pyarrow as pa

from lmm_classifier.api.classification import Candidate, Classification, Neighbour
from lmm_classifier.corpus.corpus import SkippedFile

_NEIGHBOUR = pa.struct([("path", pa.string()), ("label", pa.string()), ("similarity", pa.float64())])
_CANDIDATE = pa.struct([("label", pa.string()), ("score", pa.float64()), ("probability", pa.float64())])
_ANSWER = (  # columns that an answer has under the same name
    ("label", pa.string()),
    ("score", pa.float64()),
    ("status", pa.string()),
    ("possible", pa.list_(pa.string())),
    ("p_value", pa.float64()),
    ("closeness", pa.float64()),
    ("certainty", pa.float64()),
    ("route", pa.string()),
    ("stage", pa.string()),
    ("reason", pa.string()),
    ("used_reranker", pa.bool_()),
    ("retrieval_label", pa.string()),
    ("degraded", pa.string()),
    ("rerank_skipped", pa.string()),
    ("neighbours", pa.list_(_NEIGHBOUR)),
    ("candidates", pa.list_(_CANDIDATE)),
    ("timings", pa.map_(pa.string(), pa.float64())),
)
SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("path_bytes", pa.binary()),
        ("sha256", pa.string()),
        *_ANSWER,
        ("error_code", pa.string()),
        ("error_reason", pa.string()),
    ]
)
"""`path` is text, with `\\udcff` and the like for bytes that are no UTF-8; only then `path_bytes` is set, and
is the path. Of a photo that could not be read nothing is set but paths and error. `timings` are seconds."""


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one photo.

    Attributes:
        path: relative to the run's root; or absolute, where a table said so.
        sha256: of the bytes that were looked at; None where they could not be.
        answer: None where there is none.
        error: why there is none.
    """

    path: str
    sha256: str | None
    answer: Classification | None
    error: SkippedFile | None = None


def as_text(name: str) -> str:
    """A name that may hold bytes which are no UTF-8 (as lone surrogates), as text that can be stored."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def as_table(rows: Sequence[Row]) -> pa.Table:
    """Rows as a table of SCHEMA. By columns: pyarrow takes a hundred times longer for dicts."""
    paths = [as_text(row.path) for row in rows]
    odd = [None if text == row.path else os.fsencode(row.path) for text, row in zip(paths, rows, strict=True)]
    answers = [row.answer for row in rows]
    columns = [
        pa.array(paths, pa.string()),
        pa.array(odd, pa.binary()),
        pa.array([row.sha256 for row in rows], pa.string()),
        *(_column(answers, name, kind) for name, kind in _ANSWER),
        pa.array([row.error and row.error.code for row in rows], pa.string()),
        pa.array([row.error and row.error.reason for row in rows], pa.string()),
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def row_of(columns: pa.Table, number: int) -> Row:
    """One row of a table of SCHEMA; the thresholds of the answer are not in it."""
    [found] = columns.slice(number, 1).to_pylist()
    path = path_of(found)
    if found["error_code"] is not None:
        error = SkippedFile(path, found["error_code"], found["error_reason"])
        return Row(path, found["sha256"], None, error)
    fields: dict[str, Any] = {name: found[name] for name, _ in _ANSWER}
    fields |= {
        "possible": tuple(found["possible"]),
        "neighbours": tuple(Neighbour(**near) for near in found["neighbours"]),
        "candidates": tuple(Candidate(**candidate) for candidate in found["candidates"]),
        "timings": dict(found["timings"]),
    }
    return Row(path, found["sha256"], Classification(source=path, thresholds=None, **fields))


def path_of(found: dict[str, Any]) -> str:
    """The path of a row, as the file system knows it, from its columns `path` and `path_bytes`."""
    odd: bytes | None = found["path_bytes"]
    return str(found["path"]) if odd is None else os.fsdecode(odd)


def _column(answers: Sequence[Classification | None], name: str, kind: pa.DataType) -> pa.Array:
    values = [None if answer is None else getattr(answer, name) for answer in answers]
    if pa.types.is_map(kind):
        return pa.array([value and list(value.items()) for value in values], kind)
    if not pa.types.is_list(kind):
        return _flat(values, kind)
    starts = pa.array([0, *accumulate(len(value or ()) for value in values)], pa.int32())
    items = [item for value in values for item in value or ()]
    item = kind.value_type
    if not pa.types.is_struct(item):
        return pa.ListArray.from_arrays(starts, _flat(items, item))
    fields = [item.field(i) for i in range(item.num_fields)]
    parts = [_flat(list(map(attrgetter(f.name), items)), f.type) for f in fields]
    return pa.ListArray.from_arrays(starts, pa.StructArray.from_arrays(parts, fields=fields))


def _flat(values: list[Any], kind: pa.DataType) -> pa.Array:
    try:
        return pa.array(values, kind)
    except UnicodeEncodeError:  # a name that is no UTF-8 is among them: rare enough to try without first
        return pa.array([as_text(value) if isinstance(value, str) else value for value in values], kind)
