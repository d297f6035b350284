"""From a corpus on disk and the names of encoders to an index: what `index build` and scripts call."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

from lmm_classifier.corpus.corpus import Corpus
from lmm_classifier.corpus.source import read_corpus
from lmm_classifier.errors import CorpusError
from lmm_classifier.index.build import (
    LOCAL,
    MAX_BAD_RATIO,
    BuildOptions,
    BuildReport,
    Runner,
    write_index,
)
from lmm_classifier.index.publish import SearchOptions
from lmm_classifier.index.ray_runner import RayRunner
from lmm_classifier.index.search import VectorIndex, encoders_of, open_index
from lmm_classifier.index.update import add_to_index
from lmm_classifier.models.base import Encoder, input_size_of
from lmm_classifier.models.loading import load_encoder
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.options import Device, Dtype
from lmm_classifier.storage.progress import OnProgress, ignore_progress
from lmm_classifier.types import EncoderContract

log = logging.getLogger(__name__)

_DEFAULT_ENCODER = ModelSpec("siglip")
_DEFAULT_SEARCH = SearchOptions()
_Encoders = ModelSpec | Sequence[ModelSpec]
RunnerOf = Callable[[_Encoders], Runner]


def build_index(
    source: str | Path,
    output: str | Path,
    *,
    encoder: _Encoders = _DEFAULT_ENCODER,
    batch_size: int = 32,
    workers: int | None = None,
    max_bad_ratio: float = MAX_BAD_RATIO,
    search: SearchOptions = _DEFAULT_SEARCH,
    shard_rows: int | None = None,
    rebuild: bool = False,
    runner: RunnerOf | None = None,
    on_progress: OnProgress = ignore_progress,
) -> BuildReport:
    """Index a labelled folder (`root/<label>/**`) or a CSV or JSONL table with `path` and `label`.

    Several encoders see each photo in one pass, and the index can then be searched by each of them.
    `workers` are the threads that decode, one per processor by default. `runner` makes the shards
    elsewhere, as `on_ray` does; in this process if left out. Other arguments and errors are
    those of `lmm_classifier.index.build.write_index`; in addition a CorpusError is raised for a source
    that is missing or empty, and a ModelError for an encoder that cannot be opened. The corpus is looked
    at before a model is opened.
    """
    corpus = _corpus(source, output)
    encoders = _opened(encoder)
    options = replace(_options(encoders, batch_size, workers, max_bad_ratio, search), shard_rows=shard_rows)
    return write_index(
        corpus,
        encoders,
        Path(output),
        options,
        rebuild=rebuild,
        runner=runner(encoder) if runner else LOCAL,
        on_progress=on_progress,
    )


def on_ray(address: str | None = None) -> RunnerOf:
    """For `build_index(runner=...)`: the shards are made by the workers of a Ray cluster.

    Args:
        address: of the cluster, such as "10.0.0.1:6379"; None starts a Ray on this machine.
    """

    def runner(encoder: _Encoders) -> RayRunner:
        specs = _specs(encoder)
        return RayRunner(partial(_opened, specs), address, any(spec.device != "cpu" for spec in specs))

    return runner


def add_photos(
    source: str | Path,
    index: str | Path,
    *,
    device: Device = "auto",
    cache_dir: Path | None = None,
    batch_size: int = 32,
    workers: int | None = None,
    max_bad_ratio: float = MAX_BAD_RATIO,
    search: SearchOptions = _DEFAULT_SEARCH,
    on_progress: OnProgress = ignore_progress,
) -> BuildReport:
    """Add the photos of a folder or table to an index, with the encoders that made it.

    Raises:
        EncoderMismatchError: what the encoders' names and weights open here is not what built the index.
        LmmClassifierError: otherwise as `build_index` and `lmm_classifier.index.update.add_to_index`.
    """
    corpus = _corpus(source, index)
    encoders = _encoders_of(Path(index), device, cache_dir)
    options = _options(encoders, batch_size, workers, max_bad_ratio, search)
    return add_to_index(Path(index), corpus, encoders, options, on_progress)


def add_corpus(
    corpus: Corpus, index: Path, cache_dir: Path | None = None, on_progress: OnProgress = ignore_progress
) -> BuildReport:
    """Add photos whose labels are known already to an index, with the encoders that made it.

    Raises:
        LmmClassifierError: as `add_photos`.
    """
    encoders = _encoders_of(index, "auto", cache_dir)
    options = _options(encoders, 32, None, MAX_BAD_RATIO, _DEFAULT_SEARCH)
    return add_to_index(index, corpus, encoders, options, on_progress)


def build_index_from_directory(
    image_root: str | Path,
    batch_size: int = 32,
    output_path: str | Path = "index.npz",
    *,
    encoder: ModelSpec = _DEFAULT_ENCODER,
    on_progress: OnProgress = ignore_progress,
) -> VectorIndex:
    """The documented builder: index `image_root` into `output_path` and return the opened index.

    Files that cannot be read are skipped and logged, however many; `build_index` returns which, and why.
    """
    report = build_index(
        image_root,
        output_path,
        encoder=encoder,
        batch_size=batch_size,
        max_bad_ratio=1,
        on_progress=on_progress,
    )
    for warning in report.warnings:
        log.warning("%s: %s", image_root, warning)
    for skipped in report.skipped:
        log.warning("skipped %s: %s [%s]", skipped.path, skipped.reason, skipped.code)
    return open_index(Path(output_path))


def _corpus(source: str | Path, index: str | Path) -> Corpus:
    corpus = read_corpus(source)
    if Path(source).is_dir() and Path(index).resolve().is_relative_to(Path(source).resolve()):
        raise CorpusError(
            f"{index} lies inside the corpus {source} and would become a part of it; choose another output"
        )
    return corpus


def _encoders_of(index: Path, device: Device, cache_dir: Path | None) -> list[Encoder]:
    return _opened([_spec_of(contract, device, cache_dir) for contract in encoders_of(index)])


def _spec_of(contract: EncoderContract, device: Device, cache_dir: Path | None) -> ModelSpec:
    """How to open the encoder that a contract describes."""
    dtype = cast("Dtype", contract.dtype)
    revision = contract.revision or "main"
    return ModelSpec(contract.name, contract.weights, revision, device, dtype, cache_dir=cache_dir)


def _opened(encoder: _Encoders) -> list[Encoder]:
    return [load_encoder(spec) for spec in _specs(encoder)]


def _specs(encoder: _Encoders) -> tuple[ModelSpec, ...]:
    return (encoder,) if isinstance(encoder, ModelSpec) else tuple(encoder)


def _options(
    encoders: Sequence[Encoder],
    batch_size: int,
    workers: int | None,
    max_bad_ratio: float,
    search: SearchOptions,
) -> BuildOptions:
    sizes = [input_size_of(encoder) for encoder in encoders]
    known = [size for size in sizes if size is not None]
    return BuildOptions(
        batch_size=batch_size,
        workers=workers or os.cpu_count() or 1,
        target_size=max(known) if len(known) == len(sizes) else None,
        max_bad_ratio=max_bad_ratio,
        search=search,
    )
