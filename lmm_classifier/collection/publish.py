"""A trained version into the store: written, compared with all kept ones, chosen or not, old ones pruned.

In this order: model file, its JSON file, the comparison, `best_models.json`, and only then what is removed.
A crash at any point leaves the former best and its files, or the new.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lmm_classifier.collection.artifact import (
    FORMER,
    LINEAR,
    SCHEMA_VERSION,
    ClassifierArtifact,
    stem_of,
    to_bytes,
    write_version,
    written,
)
from lmm_classifier.collection.estimators import Estimator
from lmm_classifier.collection.fit import CalibratedModel
from lmm_classifier.collection.selection import Competitor, Metric, compete
from lmm_classifier.collection.store import BEST, changing, comparison_of
from lmm_classifier.collection.training_set import TrainingSet
from lmm_classifier.errors import CollectionError
from lmm_classifier.storage.atomic_files import replace_file, sync_folder
from lmm_classifier.storage.checksummed_json import dump_checksummed

KEEP = 10


@dataclass(frozen=True, slots=True, eq=False)
class FittedCandidate:
    """A classifier that was just fitted, and how."""

    estimator: Estimator
    calibrated: CalibratedModel


def publish(
    folder: Path, data: TrainingSet, candidates: Sequence[FittedCandidate], metric: Metric, keep: int = KEEP
) -> tuple[ClassifierArtifact, list[Competitor]]:
    """Store fitted classifiers of one collection and choose its best version.

    Returns:
        the best one, and all that competed, best first.

    Raises:
        CollectionError: the disk refuses.
    """
    with changing(folder) as entries:
        for candidate in candidates:
            _write(folder, data, candidate)
        ranking = compete(folder, versions_of(folder, data.collection), data, metric)
        best = ranking[0]
        if best.version is None:
            raise CollectionError(f"{folder}: what was just written cannot be read: {best.reason}")
        chosen = replace(best.version, metrics=best.metrics)
        body = {
            "schema_version": SCHEMA_VERSION,
            "collection": data.collection,
            "metric": metric,
            "versions": [competitor.row() for competitor in ranking],
        }
        with written():
            replace_file(comparison_of(folder, data.collection), dump_checksummed(body))
        entries[data.collection] = chosen.sealed()
    with changing(folder) as entries:  # published: now, and not before, others may go
        in_use = {entry.get("model_file") for entry in entries.values() if isinstance(entry, dict)}
        worse = [c.path for c in ranking[keep:] if f"{c.path.stem}." not in _stems(in_use)]
        _remove(folder, data.collection, worse)
    return chosen, ranking


def versions_of(folder: Path, collection: str) -> list[Path]:
    """The JSON files of all kept versions of a collection, sorted."""
    return sorted(folder.glob(f"{stem_of(collection, '')}_classifier_*.json"))


def free_stem(folder: Path, collection: str) -> str:
    """A name for a version made now that no file of the store has yet."""
    now = datetime.now(UTC).strftime("%Y-%m-%d_%H%M%S")
    for number in range(100):
        stem = stem_of(collection, f"{now}_{number}" if number else now)
        if not any(folder.glob(f"{stem}.*")):
            return stem
    raise CollectionError(f"{folder}: too many versions of collection {collection!r} in one second")


def _write(folder: Path, data: TrainingSet, candidate: FittedCandidate) -> None:
    fitted, train = candidate.calibrated, ~data.held_out
    content = to_bytes(fitted.model)
    positive = int(data.labels[train].sum())
    version = ClassifierArtifact(
        collection=data.collection,
        name=data.name,
        model_file=free_stem(folder, data.collection) + LINEAR,
        derivative_type=data.derivative_type,
        embedding_type=data.embedding_type,
        dimensionality=data.vectors.shape[1],
        parts=data.parts,
        estimator=candidate.estimator.name,
        slope=fitted.slope,
        offset=fitted.offset,
        calibration="platt" if fitted.calibration == "platt" else "none",
        threshold=fitted.threshold,
        abstain=fitted.abstain,
        training={
            "positive": positive,
            "negative": int(train.sum()) - positive,
            "held_out": int((~train).sum()),
        },
        split="sha256",
        created=datetime.now(UTC).isoformat(),
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
    )
    write_version(folder, version, content)


def _stems(model_files: set[Any]) -> set[str]:
    return {f"{Path(name).stem}." for name in model_files if isinstance(name, str)}


def _remove(folder: Path, collection: str, worse: Sequence[Path]) -> None:
    """Remove versions, each its JSON file first: without it the other is nothing, and goes next time."""
    for path in worse:
        path.unlink(missing_ok=True)
    pattern = f"{stem_of(collection, '')}_classifier_*"
    for suffix in (LINEAR, FORMER):
        for path in folder.glob(pattern + suffix):
            if not path.with_suffix(".json").exists():
                path.unlink(missing_ok=True)
    for unfinished in (
        f".{pattern}.tmp",
        f".{comparison_of(folder, collection).name}.*.tmp",
        f".{BEST}.*.tmp",
    ):
        for path in folder.glob(unfinished):  # of a process that was killed: the lock is ours
            path.unlink(missing_ok=True)
    sync_folder(folder)
