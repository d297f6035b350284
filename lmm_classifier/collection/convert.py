"""Old pickled classifiers into files that hold no code. This process opens no pickle: unpickle.py does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from lmm_classifier.collection.artifact import PICKLES, ClassifierArtifact, write_linear
from lmm_classifier.collection.encoder_binding import check_target
from lmm_classifier.collection.estimators import Linear
from lmm_classifier.collection.publish import free_stem
from lmm_classifier.collection.store import Snapshot, changing
from lmm_classifier.collection.training_set import JOIN, EmbeddingPart
from lmm_classifier.errors import CollectionError, LmmClassifierError

_MAX_SECONDS = 60
_SERVED_DIMENSIONS = {"clip": 512, "dino_v2": 768, "dino_v3": 1024, "dino_v3_patch": 1024}
"""Of the collections service's embedding types, to cut a joined vector into its parts."""


def convert_pickles(store: str | Path) -> tuple[dict[str, str], dict[str, str]]:
    """Convert every entry of `best_models.json` that names a pickle. The pickles are left where they are.

    A converted classifier keeps its own probabilities and the threshold .5. It gives way to the first one
    that is trained here: it may have seen the held-out items, so the two are not compared.

    Returns:
        collection -> new model file, and collection -> why it could not be converted.

    Raises:
        CollectionError: the store cannot be read or written.
    """
    folder = Path(store).expanduser().absolute()
    if not folder.is_dir():
        raise CollectionError(f"{folder}: there is no such store")
    converted: dict[str, str] = {}
    failed: dict[str, str] = {}
    with changing(folder) as entries:
        snapshot = Snapshot(folder, dict(entries))
        for collection in snapshot.ids:
            try:
                metadata = snapshot.metadata(collection)
                if metadata["model_file"].lower().endswith(PICKLES):
                    version = _converted(folder, collection, metadata)
                    entries[collection] = version.sealed()
                    converted[collection] = version.model_file
            except LmmClassifierError as error:
                failed[collection] = str(error)
    return converted, failed


def _converted(folder: Path, collection: str, metadata: dict[str, Any]) -> ClassifierArtifact:
    pickled = metadata["model_file"]
    if Path(pickled).name != pickled:
        raise CollectionError(f"{pickled!r} is no file of the store")
    weights, intercept = _opened(folder / pickled)
    d = metadata.get("dimensionality", len(weights))
    if d != len(weights):
        raise CollectionError(f"{pickled} takes vectors of {len(weights)} dimensions, its entry says {d}")
    return write_linear(
        folder,
        free_stem(folder, collection),
        Linear(weights, intercept),
        collection=collection,
        name=str(metadata.get("name", collection)),
        target=check_target(metadata["derivative_type"]),
        parts=_parts(metadata["embedding_type"], len(weights)),
    )


def _parts(embedding_type: str, d: int) -> tuple[EmbeddingPart, ...]:
    names = embedding_type.split(JOIN)
    if len(names) == 1:
        return (EmbeddingPart(embedding_type, d),)
    known = [_SERVED_DIMENSIONS.get(name, 0) for name in names]
    if sum(known) != d or 0 in known:
        raise CollectionError(
            f"nothing says how the {d} dimensions are shared by {embedding_type}; train again"
        )
    return tuple(EmbeddingPart(name, n) for name, n in zip(names, known, strict=True))


def _opened(path: Path) -> tuple[Any, float]:
    """Coefficients float64 (d,) and intercept, told by another process that opened the pickle."""
    command = [sys.executable, "-m", "lmm_classifier.collection.unpickle", str(path)]
    try:
        done = subprocess.run(  # noqa: S603 -- this interpreter and a module of ours
            command, capture_output=True, timeout=_MAX_SECONDS, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise CollectionError(f"{path} took longer than {_MAX_SECONDS} s to open") from error
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise CollectionError(f"{path}: {last or 'it ended the process that opened it'}")
    try:
        told = json.loads(done.stdout)
        weights, intercept = np.asarray(told["weights"], np.float64), float(told["intercept"])
    except (ValueError, KeyError, TypeError) as error:
        raise CollectionError(f"{path} gave no coefficients") from error
    if weights.ndim != 1 or not len(weights) or not np.isfinite([*weights, intercept]).all():
        raise CollectionError(f"{path} holds coefficients that are no finite numbers")
    return weights, intercept
