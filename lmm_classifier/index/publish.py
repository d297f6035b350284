"""Finished shards to a finished index: search structure, failures, calibration, and the manifest last."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lmm_classifier.corpus.corpus import SkippedFile
from lmm_classifier.index.calibration import carry_calibration
from lmm_classifier.index.engine import TARGET_RECALL, ApproximateSearch, factory_for, tuned, write_engine
from lmm_classifier.index.existing import write_stats
from lmm_classifier.index.manifest import EXACT, EXACTLY, MANIFEST, Manifest, OperatingPoint, Space
from lmm_classifier.index.npz import write_npz
from lmm_classifier.index.records import Records
from lmm_classifier.index.search import engine_file
from lmm_classifier.index.shards import map_vectors, write_failures
from lmm_classifier.index.vectors import Vectors
from lmm_classifier.index.workspace import ShardEntry, Workspace
from lmm_classifier.storage.atomic_files import FileRecord, is_single_file, replace_file, replace_large_file
from lmm_classifier.storage.progress import OnProgress, Progress
from lmm_classifier.types import EncoderContract

_LATENCY = "latency.json"
_TIMED = 100  # queries, one by one
_CALIBRATION_LOST = (
    "the thresholds were fitted for the former state of this index and are gone; calibrate again"
)


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """How the vectors of an index are to be searched.

    Attributes:
        factory: FAISS factory string; None chooses by size: "Flat" up to 300,000 vectors.
        target_recall: what an approximate structure is tuned to.
    """

    factory: str | None = None
    target_recall: float = TARGET_RECALL


def publish(
    output: Path,
    encoders: Sequence[EncoderContract],
    workspace: Workspace,
    entries: Sequence[ShardEntry],
    records: Records,
    skipped: Sequence[SkippedFile],
    options: SearchOptions,
    on_progress: OnProgress,
) -> tuple[str, ...]:
    """Make an index of finished shards and put it in its place.

    Returns:
        warnings: what became worse than asked, or was lost.

    Raises:
        ConfigError: FAISS cannot make the structure that was asked for.
        IndexFolderError: the disk refuses.
    """
    files = {name: record for entry in entries for name, record in entry.files.items()}
    if is_single_file(output):
        vectors = map_vectors(workspace.index, files, encoders[0].dim)
        write_npz(output, encoders[0], vectors.take(np.arange(len(vectors))), records)
        workspace.clear()
        return ()
    folder = workspace.index
    spaces, warnings = _spaces(folder, files, encoders, records, options, on_progress)
    files |= write_failures(folder, skipped)
    write_stats(folder, [entry.stats[i] for entry in entries for i in entry.indexed])
    manifest = Manifest(
        spaces=tuple(spaces),
        count=len(records),
        labels=records.counts(),
        files=files,
        skipped=dict(sorted(Counter(s.code for s in skipped).items())),
    )
    replace_file(folder / MANIFEST, manifest.to_json())
    if not carry_calibration(output, folder):
        warnings.append(_CALIBRATION_LOST)
    workspace.publish()
    return tuple(warnings)


def _spaces(
    folder: Path,
    files: dict[str, FileRecord],
    encoders: Sequence[EncoderContract],
    records: Records,
    options: SearchOptions,
    on_progress: OnProgress,
) -> tuple[list[Space], list[str]]:
    """The space of each encoder, made searchable, and warnings; what is written is added to `files`."""
    spaces, latencies, warnings = [], {}, []
    for number, encoder in enumerate(encoders):
        vectors = map_vectors(folder, files, encoder.dim, number)
        factory = options.factory or factory_for(len(vectors), encoder.dim)
        point = EXACTLY
        if factory != EXACT:
            on_progress(Progress(f"making {len(vectors)} vectors searchable as {factory}"))
            point, latency = _searchable(folder, files, number, vectors, records, factory, options)
            latencies[encoder.fingerprint] = latency
            if point.recall < options.target_recall:
                warnings.append(
                    f"{factory} finds {point.recall:.3f} of the {point.k} nearest of {encoder.name}, less "
                    f"than the {options.target_recall} asked for"
                )
        spaces.append(Space(encoder, point))
    if latencies:
        replace_file(folder / _LATENCY, json.dumps(latencies, indent=2, sort_keys=True).encode() + b"\n")
    return spaces, warnings


def _searchable(
    folder: Path,
    files: dict[str, FileRecord],
    number: int,
    vectors: Vectors,
    records: Records,
    factory: str,
    options: SearchOptions,
) -> tuple[OperatingPoint, float]:
    """Build, tune and write the search structure of a space; returns also milliseconds per query."""
    engine, point = tuned(vectors, records.codes, factory, options.target_recall)
    name = engine_file(number)
    files[name] = replace_large_file(folder / name, lambda path: write_engine(path, engine), len(vectors))
    search = ApproximateSearch(engine, vectors, point.refine)
    queries = vectors.take(np.linspace(0, len(vectors) - 1, _TIMED).astype(np.int64))
    times = []
    for query in queries[:, None]:
        started = time.perf_counter()
        search.search(query, point.k)
        times.append(1000 * (time.perf_counter() - started))
    return replace(point, bytes_per_vector=files[name].size / len(vectors)), float(np.median(times))


def same_content(records: Records) -> tuple[int, tuple[tuple[str, ...], ...]]:
    """Images whose bytes an earlier one has too, and groups of paths with one content and several labels."""
    contents = records.contents()
    ends = np.cumsum(np.bincount(contents))[:-1]
    groups = [g for g in np.split(np.argsort(contents, kind="stable"), ends) if len(g) > 1]
    conflicts = [group for group in groups if len(set(records.codes[group].tolist())) > 1]
    paths = tuple(tuple(records.paths(group)) for group in conflicts)
    return sum(len(group) - 1 for group in groups), paths


def read_latency(folder: Path) -> dict[str, float]:
    """Fingerprint -> milliseconds per single query, measured where the index was built; for information."""
    try:
        body = json.loads((folder / _LATENCY).read_bytes())
        return {str(name): float(value) for name, value in body.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
