"""Labelled images outside the index, as a calibrated decision sees them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from lmm_classifier.calibration.context import CalibrationContext
from lmm_classifier.calibration.leave_out import LEAST_IMAGES
from lmm_classifier.corpus.corpus import Corpus, SkippedFile
from lmm_classifier.corpus.images import load_image_file
from lmm_classifier.decision.decider import Decider
from lmm_classifier.decision.gates import joined
from lmm_classifier.errors import CorpusError, ImageError
from lmm_classifier.pipeline import Pipeline
from lmm_classifier.steps.vote import queries_of
from lmm_classifier.types import Sample, Scores, required


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """What became of held-out images.

    Attributes:
        scores: over n images.
        truths: their n labels.
        digests: SHA-256 of their files.
        skipped: those that could not be read.
    """

    scores: Scores
    truths: tuple[str, ...]
    digests: frozenset[str]
    skipped: tuple[SkippedFile, ...]


def look_at_held_out(context: CalibrationContext, decider: Decider, corpus: Corpus) -> HeldOut:
    """Decide about each image; a batch of them is in memory at a time.

    Raises:
        CorpusError: too few images, images of the index among them, or labels that are never answered.
    """
    skipped: list[SkippedFile] = []
    digests: set[str] = set()
    pipeline = context.classifier.pipeline
    steps = tuple(step for step in pipeline.steps if step.name in {"embed", "retrieve"})
    samples = Pipeline(steps, pipeline.batch_size).run(_samples(context, corpus, skipped, digests))
    encoders = [space.encoder.fingerprint for space in context.spaces]
    scores: list[Scores] = []
    truths: list[str] = []
    while batch := list(islice(samples, pipeline.batch_size)):
        queries = queries_of(batch, encoders, context.index.records.codes)
        decided = decider.decide(queries)
        vectors = queries.vectors[context.named_by]
        scores.append(context.scores(decided.probabilities, decided.known, vectors))
        truths += [required(sample.truth) for sample in batch]
    if len(truths) < LEAST_IMAGES:
        raise CorpusError(
            f"{corpus.root}: {len(truths)} readable images; calibration needs at least {LEAST_IMAGES}"
        )
    return HeldOut(joined(scores), tuple(truths), frozenset(digests), tuple(skipped))


def _samples(
    context: CalibrationContext, corpus: Corpus, skipped: list[SkippedFile], digests: set[str]
) -> Iterator[Sample]:
    """Open the images one after the other, refusing those that would teach nothing."""
    records = context.index.records
    answered = set(context.closed_labels or records.labels) & set(records.labels)
    if strangers := sorted(set(corpus.labels) - answered):
        raise CorpusError(
            f"{corpus.root}: no answer can be {', '.join(map(repr, strangers[:3]))}; thresholds are fitted "
            "on images of labels that can be answered, so leave these out"
        )
    indexed = dict(zip(records.sha256(), records.paths(), strict=True))
    pixels = context.classifier.pipeline.resolution()  # decoded as they are to classify
    for item in corpus.items:
        try:
            loaded = load_image_file(
                corpus.root / item.path, target_size=pixels, limits=context.classifier.limits
            )
        except ImageError as error:
            skipped.append(SkippedFile(item.path, error.code, error.reason))
            continue
        if loaded.sha256 in indexed:
            raise CorpusError(
                f"{corpus.root}: {item.path} is in the index too, as {indexed[loaded.sha256]}; thresholds "
                "fitted on indexed images would be too high"
            )
        digests.add(loaded.sha256)
        yield Sample.from_image(item.path, loaded.image, truth=item.label)
