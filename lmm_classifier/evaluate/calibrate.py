"""Fit the two thresholds on labelled images that are in no index."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from lmm_classifier.classifier import HybridClassifier
from lmm_classifier.corpus.corpus import Corpus, SkippedFile
from lmm_classifier.corpus.images import load_image_file
from lmm_classifier.decision.policy import Evidence, weigh
from lmm_classifier.decision.text_prior import DEFAULT_TEXT_TEMPERATURE
from lmm_classifier.errors import ConfigError, CorpusError, ImageError
from lmm_classifier.index.calibration import Calibration, write_calibration
from lmm_classifier.index.files import is_single_file
from lmm_classifier.index.manifest import read_manifest
from lmm_classifier.index.search import open_index
from lmm_classifier.pipeline import Pipeline
from lmm_classifier.types import Sample, required

MIN_IMAGES = 20  # below this, a 5 % quantile is the lowest value, whatever it is
EVIDENCE_STEPS = ("embed", "retrieve", "vote", "text_prior")


@dataclass(frozen=True, slots=True)
class Judged:
    """Evidence for one held-out image, and whether its best label is the right one."""

    evidence: Evidence
    right: bool


def calibrate(
    classifier: HybridClassifier,
    held_out: Corpus,
    *,
    keep_known: float = 0.95,
    precision: float = 0.99,
    second_look: float = 0.25,
) -> tuple[Calibration, tuple[SkippedFile, ...]]:
    """Fit thresholds for a classifier's index and store them in the index folder.

    Args:
        classifier: in the documented short form, with an index folder.
        held_out: labelled images of known labels, none of them in the index.
        keep_known: share of known images that must not be called unknown.
        precision: share of confident answers that must be right.
        second_look: share of known images, those with the least evidence, that are uncertain even where
            `precision` would not ask for it. Unknown images are not there to fit on, and most of those
            that resemble a label have less evidence for it than its own images.

    Returns:
        The calibration, and the images that could not be read.

    Raises:
        ConfigError: a target outside (0, 1), or a classifier without an index folder.
        CorpusError: too few images, images of the index among them, or labels it does not have.
    """
    for name, target in (("keep_known", keep_known), ("precision", precision), ("second_look", second_look)):
        if not 0 < target < 1:
            raise ConfigError(f"{name} must lie between 0 and 1, got {target}")
    retrieval = classifier.config.retrieval
    if retrieval is None or is_single_file(retrieval.index_path):
        raise ConfigError("calibration is kept in an index folder; set retrieval.index_path to one")
    judged, skipped = _judge(classifier, held_out)
    if len(judged) < MIN_IMAGES:
        raise CorpusError(
            f"{held_out.root}: {len(judged)} readable images; calibration needs at least {MIN_IMAGES}"
        )
    min_delta = classifier.config.rerank.min_delta
    open_set = fit_cut([j.evidence.closeness for j in judged], keep_known)
    sure = fit_cut([j.evidence.score for j in judged], 1 - second_look)
    calibration = Calibration(
        confidence_threshold=max(open_set, sure, fit_confidence(judged, precision, min_delta)),
        open_set_threshold=open_set,
        keep_known=keep_known,
        precision=precision,
        second_look=second_look,
        k=retrieval.top_k,
        temperature=retrieval.temperature,
        min_delta=min_delta,
        n_images=len(judged),
        index_digest=read_manifest(retrieval.index_path).digest,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        text_weight=retrieval.text_weight,
        text_temperature=DEFAULT_TEXT_TEMPERATURE if retrieval.text_weight else None,
    )
    write_calibration(retrieval.index_path, calibration)
    return calibration, skipped


def fit_cut(values: Sequence[float], keep: float) -> float:
    """The largest cut that at least a share `keep` of these values reach."""
    ordered: NDArray[np.float64] = np.sort(np.asarray(values, np.float64))
    may_fail = int(np.floor(len(ordered) * (1 - keep) + 1e-9))
    return float(np.clip(ordered[may_fail], 0, 1))


def fit_confidence(judged: Sequence[Judged], precision: float, min_delta: float) -> float:
    """The smallest cut at which the images that pass it are right at the asked precision.

    Images whose lead is below `min_delta` are uncertain whatever the cut, and left out. Where no cut
    is good enough, 1: every image is uncertain.
    """
    passing = sorted(
        ((j.evidence.score, j.right) for j in judged if j.evidence.lead >= min_delta), reverse=True
    )
    cut, right = 1.0, 0
    for n, (score, is_right) in enumerate(passing, start=1):
        right += is_right
        tied_with_next = n < len(passing) and passing[n][0] == score
        if not tied_with_next and right >= precision * n:
            cut = score
    return float(np.clip(cut, 0, 1))


def _judge(classifier: HybridClassifier, held_out: Corpus) -> tuple[list[Judged], tuple[SkippedFile, ...]]:
    steps = tuple(step for step in classifier.pipeline.steps if step.name in EVIDENCE_STEPS)
    skipped: list[SkippedFile] = []
    judged = []
    samples = _samples(classifier, held_out, skipped)
    for sample in Pipeline(steps, classifier.pipeline.batch_size).run(samples):
        scores = required(sample.scores)
        evidence = weigh(scores.values[0])
        label = scores.labels[evidence.best] if evidence.best >= 0 else None
        judged.append(Judged(evidence, label == sample.truth))
    return judged, tuple(skipped)


def _samples(classifier: HybridClassifier, held_out: Corpus, skipped: list[SkippedFile]) -> Iterator[Sample]:
    """Open the held-out images one after the other, refusing those that would teach nothing."""
    index = open_index(required(classifier.config.retrieval).index_path)
    if strangers := sorted(set(held_out.labels) - set(index.labels)):
        raise CorpusError(
            f"{held_out.root}: the index has no label {', '.join(map(repr, strangers[:3]))}; thresholds are "
            "fitted on images of known labels, so leave these out"
        )
    indexed = dict(zip(index.records.sha256(), index.records.paths(), strict=True))
    pixels = classifier.pipeline.resolution()  # decoded as they are to classify
    for item in held_out.items:
        try:
            loaded = load_image_file(held_out.root / item.path, target_size=pixels, limits=classifier.limits)
        except ImageError as error:
            skipped.append(SkippedFile(item.path, error.code, error.reason))
            continue
        if loaded.sha256 in indexed:
            raise CorpusError(
                f"{held_out.root}: {item.path} is in the index too, as {indexed[loaded.sha256]}; thresholds "
                "fitted on indexed images would be too high"
            )
        yield Sample.from_image(item.path, loaded.image, truth=item.label)
