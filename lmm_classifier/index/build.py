"""A labelled corpus to an index on disk: decode, encode, write shard by shard, publish at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import faiss
import numpy as np
from PIL import Image

from lmm_classifier.corpus.corpus import Corpus, CorpusItem, SkippedFile
from lmm_classifier.corpus.images import DEFAULT_LIMITS, ImageLimits, load_image_file
from lmm_classifier.errors import CorpusError, ImageError, IndexFolderError, ModelError
from lmm_classifier.index.files import FileRecord, new_folder, write_durably
from lmm_classifier.index.manifest import MANIFEST, Manifest
from lmm_classifier.index.npz import write_npz
from lmm_classifier.index.search import FAISS_FILE, flat_index
from lmm_classifier.index.shards import SHARD_ROWS, Record, write_failures, write_shard
from lmm_classifier.types import EncoderContract, FloatArray

Encode = Callable[[Sequence[Image.Image]], FloatArray]
OnProgress = Callable[["Progress"], None]


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a build stands: files looked at so far, of how many, and how many of them were skipped."""

    seen: int
    total: int
    skipped: int


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build did. Every file of the corpus is either indexed or in `skipped`.

    Attributes:
        output: the index.
        indexed: number of vectors in it.
        labels: label -> number of its vectors.
        skipped: files that were not indexed, with code and reason.
        warnings: one line each: what is odd about the corpus, though not fatal.
    """

    output: Path
    indexed: int
    labels: dict[str, int]
    skipped: tuple[SkippedFile, ...]
    warnings: tuple[str, ...]


@dataclass(slots=True)
class _Intake:
    """Decodes a corpus into batches, keeping count of what it skipped."""

    corpus: Corpus
    limits: ImageLimits
    on_progress: OnProgress | None
    skipped: list[SkippedFile] = field(init=False)

    def __post_init__(self) -> None:
        self.skipped = list(self.corpus.skipped)

    def batches(self, size: int) -> Iterator[tuple[list[Record], list[Image.Image]]]:
        """Yield full batches of images that decode, the last one maybe shorter."""
        records: list[Record] = []
        images: list[Image.Image] = []
        for i, item in enumerate(self.corpus.items):
            self._decode(item, records, images)
            if len(images) == size:
                yield records, images
                records, images = [], []
            if self.on_progress:
                self.on_progress(Progress(i + 1, len(self.corpus.items), len(self.skipped)))
        if images:
            yield records, images

    def _decode(self, item: CorpusItem, records: list[Record], images: list[Image.Image]) -> None:
        try:
            loaded = load_image_file(self.corpus.root / item.path, limits=self.limits)
        except ImageError as error:
            self.skipped.append(SkippedFile(item.path, error.code, error.reason))
            return
        records.append(Record(item.path, item.label, loaded.sha256))
        images.append(loaded.image)


def build_index(
    corpus: Corpus,
    encoder: EncoderContract,
    encode: Encode,
    output: Path,
    *,
    batch_size: int = 32,
    limits: ImageLimits = DEFAULT_LIMITS,
    on_progress: OnProgress | None = None,
) -> BuildReport:
    """Encode every readable image of a corpus into an index.

    Args:
        corpus: what to index; images that cannot be read are skipped and reported.
        encoder: contract of the encoder.
        encode: its `encode`: n RGB images to float32 (n, d), unit rows.
        output: a path ending in `.npz` for the documented single file, anything else for the folder.
            An index already there is replaced at the very end, or not at all.
        batch_size: images per model call.
        limits: what a photo may be.
        on_progress: called after each file.

    Raises:
        CorpusError: not one image could be read.
        ModelError: the encoder failed or broke its contract.
        IndexFolderError: the output cannot be written.
    """
    if batch_size < 1:
        raise CorpusError(f"batch_size must be at least 1, got {batch_size}")
    intake = _Intake(corpus, limits, on_progress)
    encoded = _encoded(intake, encoder, encode, batch_size)
    write = _write_npz if output.suffix.lower() == ".npz" else _write_folder
    labels = write(output, encoder, encoded, intake)
    return BuildReport(output, sum(labels.values()), labels, tuple(intake.skipped), corpus.warnings)


def _encoded(
    intake: _Intake, encoder: EncoderContract, encode: Encode, batch_size: int
) -> Iterator[tuple[list[Record], FloatArray]]:
    """Yield encoded batches, each checked against the encoder's contract."""
    for records, images in intake.batches(batch_size):
        vectors = encode(images)
        expected = (len(images), encoder.dim)
        if vectors.shape != expected or not np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3):
            raise ModelError(
                f"encoder {encoder.name!r} must return unit rows {expected}, got {vectors.shape}"
            )
        yield records, np.ascontiguousarray(vectors, np.float32)


def _gather(
    encoded: Iterator[tuple[list[Record], FloatArray]], rows: int
) -> Iterator[tuple[list[Record], FloatArray]]:
    """Regroup batches into shards of exactly `rows` rows, the last one maybe shorter."""
    records: list[Record] = []
    parts: list[FloatArray] = []
    for new_records, new_vectors in encoded:
        records += new_records
        parts.append(new_vectors)
        while len(records) >= rows:
            joined = np.concatenate(parts)
            yield records[:rows], joined[:rows]
            records, parts = records[rows:], [joined[rows:]]
    if records:
        yield records, np.concatenate(parts)


def _write_folder(
    output: Path,
    encoder: EncoderContract,
    encoded: Iterator[tuple[list[Record], FloatArray]],
    intake: _Intake,
) -> dict[str, int]:
    with new_folder(output, owned_by=MANIFEST) as folder:
        files: dict[str, FileRecord] = {}
        labels: Counter[str] = Counter()
        engine = flat_index(np.empty((0, encoder.dim), np.float32))
        for number, (records, vectors) in enumerate(_gather(encoded, SHARD_ROWS)):
            files |= write_shard(folder, number, vectors, records)
            engine.add(vectors)
            labels.update(record.label for record in records)
        _refuse_empty(labels, intake)
        content = faiss.serialize_index(engine).tobytes()
        files[FAISS_FILE] = write_durably(folder / FAISS_FILE, content, engine.ntotal)
        files |= write_failures(folder, ((s.path, s.code, s.reason) for s in intake.skipped))
        manifest = Manifest(
            encoder=encoder,
            count=sum(labels.values()),
            labels=dict(sorted(labels.items())),
            files=files,
            skipped=dict(sorted(Counter(s.code for s in intake.skipped).items())),
        )
        write_durably(folder / MANIFEST, manifest.to_json())
    return dict(sorted(labels.items()))


def _write_npz(
    output: Path,
    encoder: EncoderContract,
    encoded: Iterator[tuple[list[Record], FloatArray]],
    intake: _Intake,
) -> dict[str, int]:
    if output.is_dir():
        raise IndexFolderError(f"{output} is a folder; an output ending in .npz is written as one file")
    records: list[Record] = []
    parts: list[FloatArray] = []
    for new_records, new_vectors in encoded:
        records += new_records
        parts.append(new_vectors)
    labels = Counter(record.label for record in records)
    _refuse_empty(labels, intake)
    write_npz(output, encoder, np.concatenate(parts), records)
    return dict(sorted(labels.items()))


def _refuse_empty(labels: Counter[str], intake: _Intake) -> None:
    if not labels:
        codes = Counter(item.code for item in intake.skipped)
        seen = ", ".join(f"{count} {code}" for code, count in sorted(codes.items()))
        raise CorpusError(f"no image of {intake.corpus.root} could be read ({seen}); nothing was written")
