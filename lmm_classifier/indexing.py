"""From a corpus on disk and the name of an encoder to an index: what `index build` and scripts call."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from lmm_classifier.corpus.source import read_corpus
from lmm_classifier.errors import CorpusError
from lmm_classifier.index.build import BuildReport, OnProgress, build_index
from lmm_classifier.index.search import VectorIndex, open_index
from lmm_classifier.models.base import ModelSpec, load_encoder

log = logging.getLogger(__name__)

DEFAULT_ENCODER = ModelSpec("siglip")


def index_corpus(
    source: str | Path,
    output: str | Path,
    *,
    encoder: ModelSpec = DEFAULT_ENCODER,
    batch_size: int = 32,
    workers: int | None = None,
    rebuild: bool = False,
    on_progress: OnProgress | None = None,
) -> BuildReport:
    """Index a labelled folder (`root/<label>/**`) or a CSV or JSONL table with `path` and `label`.

    `workers` are the threads that decode, one per processor by default. Other arguments and errors are
    those of `lmm_classifier.index.build.build_index`; in addition a
    CorpusError is raised for a source that is missing or empty, and a ModelError for an encoder that
    cannot be opened. The corpus is looked at before the model is opened.
    """
    corpus = read_corpus(source)
    if Path(source).is_dir() and Path(output).resolve().is_relative_to(Path(source).resolve()):
        raise CorpusError(
            f"{output} lies inside the corpus {source} and would become a part of it; choose another output"
        )
    model = load_encoder(encoder)
    return build_index(
        corpus,
        model.contract,
        model.encode,
        Path(output),
        batch_size=batch_size,
        workers=workers or os.cpu_count() or 1,
        rebuild=rebuild,
        on_progress=on_progress,
    )


def build_index_from_directory(
    image_root: str | Path,
    batch_size: int = 32,
    output_path: str | Path = "index.npz",
    *,
    encoder: ModelSpec = DEFAULT_ENCODER,
    on_progress: OnProgress | None = None,
) -> VectorIndex:
    """The documented builder: index `image_root` into `output_path` and return the opened index.

    Files that cannot be read are skipped and logged; `index_corpus` returns which, and why.
    """
    report = index_corpus(
        image_root, output_path, encoder=encoder, batch_size=batch_size, on_progress=on_progress
    )
    for warning in report.warnings:
        log.warning("%s: %s", image_root, warning)
    for skipped in report.skipped:
        log.warning("skipped %s: %s [%s]", skipped.path, skipped.reason, skipped.code)
    return open_index(Path(output_path))
