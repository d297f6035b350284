"""Changes to an index that do not start from its corpus: images added, removed, or brought from a file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from lmm_classifier.corpus.corpus import Corpus, SkippedFile
from lmm_classifier.errors import ConfigError, IndexFolderError, ModelError
from lmm_classifier.index.build import DEFAULT_OPTIONS, BuildOptions, BuildPlan, BuildReport, carry_out
from lmm_classifier.index.engine import factory_for
from lmm_classifier.index.existing import ExistingIndex, ReusedRows, Task, open_existing
from lmm_classifier.index.manifest import MANIFEST, Manifest, read_manifest
from lmm_classifier.index.npz import read_npz, write_npz
from lmm_classifier.index.records import Record
from lmm_classifier.index.search import open_index, the_encoder
from lmm_classifier.index.shard_builder import MakesVectors
from lmm_classifier.index.shards import read_failures
from lmm_classifier.index.vectors import Vectors
from lmm_classifier.index.workspace import Workspace, locked_workspace
from lmm_classifier.storage.atomic_files import is_single_file
from lmm_classifier.storage.progress import OnProgress, ignore_progress
from lmm_classifier.types import EncoderContract, FloatArray


def add_to_index(
    index: Path,
    corpus: Corpus,
    encoders: Sequence[MakesVectors],
    options: BuildOptions = DEFAULT_OPTIONS,
    on_progress: OnProgress = ignore_progress,
) -> BuildReport:
    """Add the images of a corpus to an index; of two with the same path, the added one stays.

    Paths are kept relative to the root of the corpus they came from. `build_index` with another corpus
    would remove them again.

    Raises:
        IndexFolderError: there is no index, or it is damaged or being written.
        EncoderMismatchError: it was built by other encoders.
        CorpusError, ModelError, ConfigError: as `build_index`.
    """
    contracts = [encoder.contract for encoder in encoders]
    added = {item.path for item in corpus.items}
    with _changing(index) as workspace:
        existing = open_existing(index, contracts)
        noted = tuple(failure for failure in _failures(index) if failure.path not in added)
        stay = _kept(existing, lambda record: record.path not in added)
        tasks: tuple[Task, ...] = (*stay, *corpus.items)
        plan = BuildPlan(corpus.root, tasks, corpus.skipped, corpus.warnings, noted)
        options = _searched_as_before(options, read_manifest(index))
        return carry_out(plan, encoders, index, workspace, existing, options, on_progress=on_progress)


def remove_from_index(
    index: Path,
    paths: Collection[str] = (),
    labels: Collection[str] = (),
    options: BuildOptions = DEFAULT_OPTIONS,
) -> BuildReport:
    """Remove images by path, or all of a label. No model and no photo is opened.

    Raises:
        ConfigError: the index has no such path or label, or nothing would be left.
        IndexFolderError: there is no index, or it is damaged or being written.
    """
    with _changing(index) as workspace:
        manifest = read_manifest(index)
        existing = open_existing(index, manifest.encoders)
        missing = (set(paths) - set(existing.records.paths())) | (set(labels) - set(existing.records.labels))
        if missing:
            raise ConfigError(f"{index} has no path or label {min(missing)!r}; nothing was removed")
        tasks = _kept(existing, lambda record: record.path not in paths and record.label not in labels)
        if not tasks:
            raise ConfigError(f"nothing would be left of {index}; delete the folder instead")
        plan = BuildPlan(index, tasks, noted=_failures(index))
        stored = [Stored(encoder) for encoder in manifest.encoders]
        options = _searched_as_before(options, manifest)
        return carry_out(plan, stored, index, workspace, existing, options)


def import_npz(source: Path, output: Path, options: BuildOptions = DEFAULT_OPTIONS) -> BuildReport:
    """Turn the documented single file into an index folder.

    Raises:
        IndexFolderError: the file is damaged, or there is an index at `output`.
    """
    contract, vectors, records = read_npz(source)
    existing = ExistingIndex(records, [Vectors([vectors], contract.dim)], None)
    with locked_workspace(output) as workspace:
        if (output / MANIFEST).is_file():
            raise IndexFolderError(f"{output} is an index already; choose another output or delete it first")
        plan = BuildPlan(source, _kept(existing, lambda _: True))
        return carry_out(plan, [Stored(contract)], output, workspace, existing, options)


def export_npz(index: Path, output: Path, encoder: str = "") -> int:
    """Write the vectors of one encoder as the documented single file; returns the number of images.

    Args:
        index: folder or file.
        output: a path ending in .npz.
        encoder: family of the encoder; may be left out where there is only one.

    Raises:
        ConfigError: the index has no such encoder, or several and none is named.
        IndexFolderError: the index is damaged, or the disk refuses.
    """
    if not is_single_file(output):
        raise ConfigError(f"{output} must end in .npz")
    opened = open_index(index, the_encoder(index, encoder))
    write_npz(output, opened.encoder, opened.vectors.take(np.arange(len(opened))), opened.records)
    return len(opened)


@dataclass(frozen=True, slots=True)
class Stored:
    """The encoder of vectors that are there already."""

    contract: EncoderContract

    def encode(self, images: Sequence[Image.Image]) -> FloatArray:
        """Never needed: nothing but kept rows is in the plan."""
        raise ModelError(f"encoder {self.contract.name!r} is not open, yet {len(images)} images came")


@contextmanager
def _changing(index: Path) -> Iterator[Workspace]:
    if is_single_file(index):
        raise IndexFolderError(f"{index} is a single file; `index import` makes a folder of it")
    read_manifest(index)  # before a workspace is made beside something that is no index
    with locked_workspace(index) as workspace:
        yield workspace


def _searched_as_before(options: BuildOptions, manifest: Manifest) -> BuildOptions:
    """Keep a search structure that was asked for, and not chosen by size."""
    first = manifest.spaces[0]
    factory, chosen = first.search.factory, factory_for(manifest.count, first.encoder.dim)
    if options.search.factory or factory == chosen:
        return options
    return replace(options, search=replace(options.search, factory=factory))


def _kept(existing: ExistingIndex, stays: Callable[[Record], bool]) -> tuple[ReusedRows, ...]:
    records = enumerate(existing.records)
    return tuple(ReusedRows(r.path, r.label, r.sha256, row) for row, r in records if stays(r))


def _failures(index: Path) -> tuple[SkippedFile, ...]:
    return read_failures(index, read_manifest(index).files)
