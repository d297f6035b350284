"""Which photos of an experiment are indexed, held out for the calibration, and evaluated on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lmm_classifier.corpus.corpus import Corpus, CorpusItem, SkippedFile
from lmm_classifier.corpus.source import read_corpus
from lmm_classifier.corpus.split import split_of
from lmm_classifier.errors import ConfigError, CorpusError
from lmm_classifier.evaluation.dataset import read_unknowns
from lmm_classifier.experiments.spec import Experiment
from lmm_classifier.storage.progress import OnProgress, Progress


@dataclass(frozen=True, slots=True)
class SplitPhoto:
    """A labelled photo.

    Attributes:
        path: absolute.
        label: of the corpus.
        digest: SHA-256 of the file; of its path where it cannot be read, which whoever opens it reports.
    """

    path: str
    label: str
    digest: str


@dataclass(frozen=True, slots=True)
class SplitPhotos:
    """Photos of one source, and what in it is none."""

    root: Path
    photos: tuple[SplitPhoto, ...]
    skipped: tuple[SkippedFile, ...] = ()

    def corpus(self) -> Corpus:
        """The same as a corpus."""
        items = tuple(CorpusItem(photo.path, photo.label) for photo in self.photos)
        return Corpus(items, self.skipped, empty_labels=(), root=self.root)

    def table(self) -> bytes:
        """The same as a .jsonl table."""
        rows = (json.dumps({"path": photo.path, "label": photo.label}) for photo in self.photos)
        return "".join(f"{row}\n" for row in rows).encode()

    def digest(self) -> str:
        """SHA-256 of contents and labels, wherever the files lie."""
        rows = sorted((photo.digest, photo.label) for photo in self.photos)
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Splits:
    """The photos of one seed. `held_out_labels` are in `evaluate` alone."""

    index: SplitPhotos
    evaluate: SplitPhotos
    held_out: SplitPhotos | None
    near: SplitPhotos | None
    far: SplitPhotos | None
    held_out_labels: tuple[str, ...]

    def named(self) -> dict[str, SplitPhotos]:
        """Those that there are."""
        names = ("index", "held_out", "evaluate", "near", "far")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass(slots=True)
class SplitSources:
    """The photos of an experiment, each source read once.

    Raises:
        CorpusError: a source is missing or wrong.
    """

    experiment: Experiment
    on_progress: OnProgress
    _read: dict[str, SplitPhotos] = field(default_factory=dict)

    def parts(self, seed: int) -> Splits:
        """What a run with this seed works on.

        Raises:
            ConfigError: a part without photos, or as many labels held out as there are.
        """
        asked = self.experiment
        shares = asked.split.shares() if asked.split else {}
        salt = seed if asked.split is None or asked.split.seed is None else asked.split.seed
        divided = self._divided(shares, salt) if shares else self._given()
        labels = sorted({photo.label for photo in divided["index"].photos})
        if asked.hold_out_labels >= len(labels):
            raise ConfigError(
                f"hold_out_labels is {asked.hold_out_labels}, the indexed photos have {len(labels)} labels"
            )
        drawn = np.random.default_rng(seed).permutation(labels)[: asked.hold_out_labels]
        held_out_labels = tuple(sorted(drawn.tolist()))
        known = {name: _without(photos, held_out_labels) for name, photos in divided.items()}
        for name, photos in known.items():
            if not photos.photos:
                raise ConfigError(f"no photo is left for the part {name!r}; change the shares or the data")
        return Splits(
            known["index"],
            divided["evaluate"],
            known.get("held_out"),
            self._source("near", unknown=True),
            self._source("far", unknown=True),
            held_out_labels,
        )

    def _divided(self, shares: Mapping[str, float], salt: int) -> dict[str, SplitPhotos]:
        whole = self._source("corpus")
        if whole is None:
            raise AssertionError("an experiment with a split has a corpus")
        parts: dict[str, list[SplitPhoto]] = {name: [] for name in shares}
        for photo in whole.photos:
            salted = hashlib.sha256(f"{salt}:{photo.digest}".encode()).hexdigest()
            parts[split_of(salted, shares)].append(photo)
        return {
            name: SplitPhotos(whole.root, tuple(photos), whole.skipped if name == "evaluate" else ())
            for name, photos in parts.items()
        }

    def _given(self) -> dict[str, SplitPhotos]:
        parts = {name: self._source(name) for name in ("index", "held_out", "evaluate")}
        return {name: photos for name, photos in parts.items() if photos is not None}

    def _source(self, key: str, *, unknown: bool = False) -> SplitPhotos | None:
        path: Path | None = getattr(self.experiment, key)
        if path is None:
            return None
        if key not in self._read:
            if not path.exists():
                remedy = f"run `{self.experiment.needs}` first" if self.experiment.needs else "check the path"
                raise CorpusError(f"{key}: {path}: there is no such file or folder; {remedy}")
            corpus = read_unknowns(path) if unknown else read_corpus(path)
            self._read[key] = SplitPhotos(corpus.root, tuple(self._digested(corpus)), corpus.skipped)
        return self._read[key]

    def _digested(self, corpus: Corpus) -> list[SplitPhoto]:
        photos = []
        for done, item in enumerate(corpus.items, start=1):
            path = (corpus.root / item.path).absolute()
            photos.append(SplitPhoto(str(path), item.label, _digest(path)))
            self.on_progress(Progress("reading the photos", done, len(corpus.items)))
        return photos


def _without(photos: SplitPhotos, labels: Sequence[str]) -> SplitPhotos:
    kept = tuple(photo for photo in photos.photos if photo.label not in labels)
    return SplitPhotos(photos.root, kept, photos.skipped)


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:  # stays where it is: building the index, or classifying it, reports it
        return hashlib.sha256(str(path).encode("utf-8", "surrogateescape")).hexdigest()
