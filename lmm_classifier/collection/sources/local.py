"""Training data on this machine: labelled photos, or arrays. Each label is a collection, against the rest."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from lmm_classifier.collection.encoder_binding import Encoders, bound, part_of
from lmm_classifier.collection.training_set import EmbeddingPart, SkippedCollection, TrainingSet, unit_rows
from lmm_classifier.corpus.corpus import SkippedFile
from lmm_classifier.corpus.source import read_corpus
from lmm_classifier.errors import CollectionError, ConfigError
from lmm_classifier.models.loading import load_encoder
from lmm_classifier.pipeline import Pipeline
from lmm_classifier.regions import RegionSelector, TargetName
from lmm_classifier.steps.embed import Embed
from lmm_classifier.types import EncoderContract, FloatArray

_Labelled = dict[str, set[str]]  # item -> its labels


def photo_sets(
    source: Path, encoders: Encoders, where: RegionSelector, notes: list[str]
) -> Iterator[TrainingSet | SkippedCollection]:
    """Labelled photos: a folder per label, or a CSV or JSONL table with `path` and `label`.

    An item is a photo's content: copies count once, and one that lies under two labels belongs to both.

    Args:
        source: folder or table.
        encoders: name of each part of the vectors -> what makes it, in order.
        where: the part of a photo to look at. A photo without it is left out: it would teach another thing.
        notes: takes a sentence for all that is left out.

    Raises:
        ConfigError: no encoder.
        CorpusError, ModelError: as reading the photos and encoding them raises it.
    """
    if not encoders:
        raise ConfigError("photos need an encoder: --encoder NAME, or NAME=FAMILY=WEIGHTS")
    corpus = read_corpus(source)
    notes += [f"{entry.path}: {entry.reason} [{entry.code}]" for entry in corpus.skipped]
    steps = (*where.steps(), *(Embed(spec) for spec in encoders.values()))
    contracts = [load_encoder(spec).contract for spec in encoders.values()]
    paths = [corpus.root / item.path for item in corpus.items]
    labelled: _Labelled = {}
    rows: list[FloatArray] = []
    for item, path, found in zip(corpus.items, paths, Pipeline(steps).run_files(paths), strict=True):
        if isinstance(found, SkippedFile):
            notes.append(f"{item.path}: {found.reason} [{found.code}]")
        elif found.skipped is not None:
            notes.append(f"{item.path}: {found.skipped.reason} [{found.skipped.code}]")
        else:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest not in labelled:
                rows.append(np.concatenate([found.embeddings[c.fingerprint][0] for c in contracts]))
            labelled.setdefault(digest, set()).add(item.label)
    parts = tuple(part_of(name, contract) for name, contract in zip(encoders, contracts, strict=True))
    if rows:
        yield from _one_against_the_rest(labelled, np.stack(rows), where.target, parts)


def array_sets(
    source: Path, encoders: Encoders, embedding_type: str | None, target: TargetName
) -> Iterator[TrainingSet | SkippedCollection]:
    """Arrays in an `.npz` file, read without pickle.

    `embeddings`: floats (n, d); `labels`: texts (n,); optional `ids`: texts or integers (n,), else the rows'
    own digests. A file of `index export` has its encoder in it; of another one `embedding_type` names it.

    Raises:
        CollectionError: the file is damaged or inconsistent.
        ConfigError: nothing says whose vectors they are.
    """
    arrays = _arrays(source)
    if missing := [key for key in ("embeddings", "labels") if key not in arrays]:
        raise CollectionError(f"{source} has no array {missing[0]!r}")
    vectors = unit_rows(arrays["embeddings"], of=str(source))
    labels = [str(label) for label in arrays["labels"].reshape(-1).tolist()]
    digests = [hashlib.sha256(row.tobytes()).hexdigest() for row in vectors]
    items = [str(item) for item in arrays["ids"].reshape(-1).tolist()] if "ids" in arrays else digests
    if not len(labels) == len(items) == len(vectors):
        raise CollectionError(f"{source}: {len(vectors)} embeddings, {len(labels)} labels, {len(items)} ids")
    part = _part(arrays, vectors.shape[1], encoders, embedding_type, source)
    first: dict[str, int] = {}
    for row, item in enumerate(items):
        first.setdefault(item, row)
    if any(digests[row] != digests[first[item]] for row, item in enumerate(items)):
        raise CollectionError(f"{source}: an id stands for two different embeddings")
    labelled: _Labelled = {item: set() for item in first}
    for item, label in zip(items, labels, strict=True):
        labelled[item].add(label)
    rows = vectors[[first[item] for item in labelled]]
    yield from _one_against_the_rest(labelled, rows, target, (part,))


def _one_against_the_rest(
    labelled: Mapping[str, set[str]],
    vectors: FloatArray,
    target: TargetName,
    parts: tuple[EmbeddingPart, ...],
) -> Iterator[TrainingSet | SkippedCollection]:
    for label in sorted(set().union(*labelled.values())):
        if not label.isprintable():
            yield SkippedCollection(ascii(label), ascii(label), "its name is no printable text")
            continue
        belongs = np.asarray([label in labels for labels in labelled.values()], np.bool_)
        yield TrainingSet(label, label, target, parts, vectors, belongs, tuple(labelled))


def _arrays(source: Path) -> dict[str, Any]:
    try:
        with np.load(io.BytesIO(source.read_bytes()), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise CollectionError(f"{source} is no readable .npz file without pickle") from error


def _part(
    arrays: Mapping[str, Any], d: int, encoders: Encoders, embedding_type: str | None, source: Path
) -> EmbeddingPart:
    if "encoder" in arrays:
        try:
            contract = TypeAdapter(EncoderContract).validate_python(json.loads(str(arrays["encoder"])))
        except (ValueError, ValidationError) as error:
            raise CollectionError(f"{source}: the array `encoder` holds no contract of an encoder") from error
        if contract.dim != d:
            raise CollectionError(f"{source}: {d} dimensions, but its encoder has {contract.dim}")
        return part_of(embedding_type or contract.name, contract)
    name = embedding_type or next(iter(encoders), None)
    if name is None:
        raise ConfigError(f"{source} does not say whose vectors it holds; --embedding-type does")
    return bound(name, d, encoders)
