"""Photos that nobody has labelled, and a classifier of three colours that does it."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from lmm_classifier.api.hybrid_classifier import HybridClassifier
from lmm_classifier.config.pipeline import PipelineConfig
from lmm_classifier.labelling.run import label_photos
from lmm_classifier.labelling.run_store import RESULTS
from lmm_classifier.storage.progress import Progress
from served import make_index
from synthetic import COLOURS, picture

SETTINGS = """\
encoder: {family: fake}
retrieval: {index_path: index}
rerank: {enabled: false}
batch_size: 4
"""


def write_settings(folder: Path) -> Path:
    """folder/config.yaml, of a classifier that tells red from green from blue; and its index."""
    make_index(folder)
    (folder / "config.yaml").write_text(SETTINGS, encoding="utf-8")
    return folder / "config.yaml"


def write_photos(folder: Path, per_colour: int, seed: int = 10_000) -> Path:
    """folder/<n>-<colour>.png: a name that no classifier reads."""
    folder.mkdir()
    for offset, (name, colour) in enumerate(COLOURS.items()):
        for i in range(per_colour):
            picture(colour, seed + 1000 * offset + i).save(folder / f"{i:03}-{name}.png")
    return folder


def attempt(config: Path, photos: Path, run: Path, shard_rows: int, die_at: int, after: float = 0) -> None:
    """Label photos, in a process that a signal ends so many seconds after it has come to a photo."""

    def on_progress(progress: Progress) -> None:
        if progress.seen >= die_at and not any(signal.getitimer(signal.ITIMER_REAL)):
            signal.setitimer(signal.ITIMER_REAL, after or 1e-6)

    classifier = HybridClassifier(PipelineConfig.from_yaml(config))
    label_photos(photos, classifier, run, shard_rows=shard_rows, on_progress=on_progress)


def table(run: Path) -> list[dict[str, Any]]:
    """The rows of a finished run, as a stranger reads them."""
    rows: list[dict[str, Any]] = pq.read_table(run / RESULTS).to_pylist()
    return rows
