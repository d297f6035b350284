"""Which regions a reranker is asked about, and between which answers it may choose."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from lmm_classifier.decision.fusion import certainty, retrieval_probabilities
from lmm_classifier.index.calibration import RerankTrial
from lmm_classifier.types import UNKNOWN, Float64Array, Sample, Scores, Verdict, required


@dataclass(frozen=True, slots=True, eq=False)
class RerankRequest:
    """An uncertain region that the model may be asked about.

    Attributes:
        sample: whose region it is.
        place: number of the sample in its batch.
        region: number of the region in the sample.
        crop: its pixels.
        options: the possible answers, in the order presented.
        certainty: of retrieval that its answer is right, in (0, 1].
    """

    sample: Sample
    place: int
    region: int
    crop: Image.Image
    options: tuple[str, ...]
    certainty: float

    @property
    def label(self) -> str:
        """Retrieval's answer."""
        return required(required(self.sample.verdicts)[self.region].label)

    @property
    def retrieval(self) -> Float64Array:
        """What retrieval gives each option, float64 (options,), not normalised."""
        return _opinion(self.options, required(self.sample.scores), self.region)


def rerank_requests(
    sample: Sample, place: int, max_candidates: int, allow_unknown: bool
) -> Iterator[RerankRequest]:
    """The regions of a sample that the model may be asked about.

    These are the uncertain ones that do not wait for a person and have two possible answers at least.

    Args:
        sample: after `open_set`.
        place: its number in the batch.
        max_candidates: best labels that are options where the policy names none.
        allow_unknown: offer UNKNOWN as well.
    """
    crops, scores = sample.crops(), required(sample.scores)
    for i, verdict in enumerate(required(sample.verdicts)):
        if verdict.status != "uncertain" or verdict.route == "review":
            continue
        options = _shuffled(_options(scores, i, verdict, max_candidates, allow_unknown), crops[i])
        if len(options) > 1:
            own = options.index(required(verdict.label))
            yield RerankRequest(
                sample, place, i, crops[i], options, certainty(_opinion(options, scores, i), own)
            )


def skip_reason(trial: RerankTrial, request: RerankRequest) -> str | None:
    """Why the calibration says not to ask about this region; None where it says to ask."""
    if not trial.helps:
        return f"it corrects {trial.corrections} and spoils {trial.regressions} of {trial.cases} photos here"
    if request.label in trial.not_for:
        return f"it spoils more photos of {request.label!r} than it corrects"
    if request.certainty >= trial.ask_below:
        return f"retrieval is sure enough, {request.certainty:.3f}: asking pays below {trial.ask_below:.3f}"
    return None


def _opinion(options: Sequence[str], scores: Scores, region: int) -> Float64Array:
    known = float(scores.closeness[region])
    return retrieval_probabilities(options, scores.labels, scores.values[region], known)


def _options(
    scores: Scores, region: int, verdict: Verdict, max_candidates: int, allow_unknown: bool
) -> list[str]:
    """The labels that remain possible where the policy names them, else the best; and retrieval's answer."""
    none = {UNKNOWN} if allow_unknown else set[str]()
    ranked = np.argsort(-scores.values[region], kind="stable")[:max_candidates]
    possible = verdict.candidates
    labels = set(possible) - none or {scores.labels[j] for j in ranked}
    options = sorted(labels | {required(verdict.label)})
    if allow_unknown and UNKNOWN not in options and (not possible or UNKNOWN in possible):
        options.append(UNKNOWN)
    return options


def _shuffled(options: Sequence[str], crop: Image.Image) -> tuple[str, ...]:
    """In an order seeded by the pixels: the order of the ranks would give the first one away."""
    seed = hashlib.sha256(np.ascontiguousarray(crop).data).digest()
    order = np.random.default_rng(list(seed)).permutation(len(options))
    return tuple(options[j] for j in order)
