"""The indexes that the runs of an experiment share, and how a run gets one that it may calibrate."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from lmm_classifier.api.build_index import build_index
from lmm_classifier.config.pipeline import PipelineConfig
from lmm_classifier.corpus.corpus import SkippedFile
from lmm_classifier.experiments.splits import SplitPhotos
from lmm_classifier.models.runtime.options import NOT_TAKEN_BY_ALL
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.storage.atomic_files import explained, replace_file
from lmm_classifier.storage.checksummed_json import digest_of
from lmm_classifier.storage.progress import OnProgress


def index_key(photos: SplitPhotos, encoder: ModelSpec) -> str:
    """Equal for equal photos, in equal places, by an equal encoder."""
    rows = [[photo.path, photo.label, photo.digest] for photo in photos.photos]
    refused = NOT_TAKEN_BY_ALL.keys() - {"compile"}  # by every encoder
    spec = {name: str(value) for name, value in asdict(encoder).items() if name not in refused}
    return digest_of({"encoder": spec, "photos": rows})[:16]


class SharedIndexes:
    """Indexes, each built, or brought up to date, when the first run asks for it.

    Args:
        folder: where they lie, with a table of the photos of each.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made: set[Path] = set()

    def index_of(
        self, photos: SplitPhotos, config: PipelineConfig, on_progress: OnProgress
    ) -> tuple[Path, tuple[SkippedFile, ...]]:
        """The index of the photos by the encoder of the settings, and what was skipped if it was made now.

        Raises:
            LmmClassifierError: as `build_index`.
        """
        encoder = config.encoder
        if config.cache_dir is not None and encoder.cache_dir is None:
            encoder = replace(encoder, cache_dir=config.cache_dir)
        key = index_key(photos, config.encoder)
        index = self.folder / "indexes" / f"{encoder.family}-{key}"
        if index in self._made:
            return index, ()
        table = self.folder / "tables" / f"{key}.jsonl"
        replace_file(table, photos.table())
        report = build_index(table, index, encoder=encoder, on_progress=on_progress)
        self._made.add(index)
        return index, tuple(report.skipped)


def link_files(source: Path, target: Path, link: Callable[[Path, Path], None] = os.link) -> None:
    """Give a folder's files a second name each; copies where the disk knows no hard links.

    Every writer of this package replaces a file and never writes into one, so neither folder sees the
    other's changes.

    Raises:
        IndexFolderError: the disk refuses.
    """
    with explained(target):
        for file in sorted(path for path in source.rglob("*") if path.is_file()):
            place = target / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                link(file, place)
            except OSError:  # another disk, or none that links: a copy does as well
                shutil.copy2(file, place)
