"""The documented single-file form of an index: numpy arrays, written and read without pickle."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from lmm_classifier.errors import IndexFolderError
from lmm_classifier.index.records import Record, Records
from lmm_classifier.storage.atomic_files import replace_file
from lmm_classifier.types import EncoderContract, FloatArray

_KEYS = ("embeddings", "labels", "metadata", "metric")


def write_npz(path: Path, encoder: EncoderContract, vectors: FloatArray, records: Records) -> None:
    """Write an index to one file, atomically.

    Arrays: `embeddings` float32 (n, d), unit rows; `labels` str (n,); `metadata` str (n,), one JSON
    object with path, label and sha256 each; `metric` str (), "cosine"; `encoder` str (), the contract
    as JSON, without which the file could not tell whose vectors it holds.
    """
    buffer = io.BytesIO()
    np.savez(
        buffer,
        allow_pickle=False,
        embeddings=vectors,
        labels=np.asarray([record.label for record in records], np.str_),
        metadata=np.asarray([json.dumps(asdict(record)) for record in records], np.str_),
        metric=np.asarray("cosine"),
        encoder=np.asarray(json.dumps(asdict(encoder), sort_keys=True)),
    )
    replace_file(path, buffer.getvalue())


def read_npz(path: Path) -> tuple[EncoderContract, FloatArray, Records]:
    """Read what `write_npz` wrote.

    Raises:
        IndexFolderError: damaged, inconsistent, needing pickle, or silent about its encoder.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            return _checked(path, {name: arrays[name] for name in arrays.files})
    except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile, ValidationError) as error:
        raise IndexFolderError(
            f"{path} is damaged or not an index file without pickle; rebuild it with `index build`"
        ) from error


def _checked(path: Path, arrays: dict[str, Any]) -> tuple[EncoderContract, FloatArray, Records]:
    if missing := [key for key in _KEYS if key not in arrays]:
        raise IndexFolderError(f"{path} lacks the array {missing[0]!r}; rebuild it")
    if "encoder" not in arrays:
        raise IndexFolderError(f"{path} does not say which encoder made its vectors; rebuild it")
    if str(arrays["metric"]) != "cosine":
        raise IndexFolderError(f"{path} has metric {str(arrays['metric'])!r}; only cosine is supported")
    contract = TypeAdapter(EncoderContract).validate_json(str(arrays["encoder"]))
    records = tuple(_record(json.loads(text)) for text in arrays["metadata"].tolist())
    vectors = arrays["embeddings"]
    expected = (len(records), contract.dim)
    if vectors.dtype != np.float32 or vectors.shape != expected or not np.isfinite(vectors).all():
        raise IndexFolderError(
            f"{path}: embeddings must be finite float32 {expected}, they are {vectors.dtype} {vectors.shape}"
        )
    if not np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3):
        raise IndexFolderError(f"{path}: embeddings must be unit rows; rebuild it")
    if [record.label for record in records] != arrays["labels"].tolist():
        raise IndexFolderError(f"{path}: labels and metadata disagree; rebuild it")
    return contract, vectors, Records.of(records)


def _record(body: dict[str, Any]) -> Record:
    # Not by pydantic, which takes no text with lone surrogates: names that are not UTF-8 hold them.
    return Record(str(body["path"]), str(body["label"]), str(body["sha256"]))
