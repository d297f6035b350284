"""The public answer for one image: a flat, self-explaining view of a finished sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lmm_classifier.decision.gates import Gates
from lmm_classifier.decision.policy import Thresholds
from lmm_classifier.types import UNKNOWN, Choice, Route, Sample, Scores, Status, required

_CANDIDATES = 20  # as many as a reranker can be shown: a calibrated vote gives every label something


@dataclass(frozen=True, slots=True)
class Candidate:
    """A label that was in the running.

    Attributes:
        label: the label; UNKNOWN where the reranker was offered it.
        score: evidence from retrieval, and from the name where `text_prior` is on, in [0, 1].
        probability: the reranker's, among the options it was shown; None where it was not asked.
    """

    label: str
    score: float
    probability: float | None


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A labelled image of the corpus that is near: path relative to the corpus root, cosine similarity."""

    path: str
    label: str
    similarity: float


@dataclass(frozen=True, slots=True)
class Classification:
    """What the classifier says of one image, and why.

    Attributes:
        source: path of the image, or a name like "image-0" for one given in memory.
        label: the answer; "unknown" when no label of the corpus fits.
        score: in [0, 1], for the answer given: its evidence (for "unknown", 1 - closeness), or the
            reranker's probability, as `stage` says.
        used_reranker: whether a vision-language model decided.
        status: "known", "uncertain" (a best guess) or "unknown".
        stage: name of the step that decided.
        reason: one sentence with the numbers that decided.
        degraded: why a stage that should have taken part could not; None when all did.
        retrieval_label: the answer without the reranker.
        closeness: how known the image looks, in [0, 1]. With a calibration, the probability of being known
            were known and held-out labels equally common; else the sum of the evidence, which without
            `text_prior` is the weighted mean similarity to the neighbours.
        route: where the policy sent the image: accept, unknown, rerank or review.
        possible: with a calibration, the labels that remain possible, best first; "unknown" may be one.
        p_value: with a calibration, the share of known images that look at most as known.
        rerank_skipped: why the reranker was not asked about an uncertain image, such as its time being up.
        certainty: of an uncertain image, how sure retrieval is of its answer among all that is possible, in
            (0, 1]; where few may be shown to the reranker, those of the least are.
        candidates: best first by evidence, at most CANDIDATES.
        neighbours: nearest first; none has the label of an answer that rests on its name alone.
        thresholds: the policy in force; None when the pipeline has no `open_set` step.
        timings: step -> seconds, this image's share of its batch.
    """

    source: str
    label: str
    score: float
    used_reranker: bool
    status: Status
    stage: str
    reason: str
    degraded: str | None
    retrieval_label: str
    closeness: float
    candidates: tuple[Candidate, ...]
    neighbours: tuple[Neighbour, ...]
    thresholds: Thresholds | Gates | None
    timings: Mapping[str, float]
    route: Route | None = None
    possible: tuple[str, ...] = ()
    p_value: float | None = None
    rerank_skipped: str | None = None
    certainty: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types."""
        return {**asdict(self), "timings": dict(self.timings)}


def summarise(sample: Sample, thresholds: Thresholds | Gates | None) -> Classification:
    """View the whole-image region of a finished sample as a Classification."""
    verdict = required(sample.verdicts)[0]
    scores, neighbours = required(sample.scores), required(sample.neighbours)
    choice = sample.choices[0] if sample.choices else None
    candidates = _candidates(scores, choice)
    best_known = next((c.label for c in candidates if c.label != UNKNOWN), UNKNOWN)
    unknown_by_retrieval = verdict.status == "unknown" and choice is None
    near = zip(neighbours.paths[0], neighbours.labels[0], neighbours.similarity[0].tolist(), strict=False)
    return Classification(
        source=sample.sample_id,
        label=UNKNOWN if verdict.label is None else verdict.label,
        score=verdict.score,
        used_reranker=choice is not None,
        status=verdict.status,
        stage=verdict.decided_by,
        reason=verdict.reason,
        degraded=verdict.degraded,
        retrieval_label=UNKNOWN if unknown_by_retrieval else best_known,
        closeness=float(scores.closeness[0]),
        candidates=candidates,
        neighbours=tuple(Neighbour(*item) for item in near),
        thresholds=thresholds,
        timings=dict(sample.timings),
        route=verdict.route,
        possible=verdict.candidates,
        p_value=verdict.p_value,
        rerank_skipped=verdict.rerank_skipped,
        certainty=verdict.certainty,
    )


def _candidates(scores: Scores, choice: Choice | None) -> tuple[Candidate, ...]:
    probabilities = choice.probabilities if choice else {}
    evidence = dict(zip(scores.labels, scores.values[0].tolist(), strict=True))
    ranked = sorted(evidence, key=lambda label: -evidence[label])[:_CANDIDATES]
    offered = [label for label in probabilities if label not in ranked]
    return tuple(Candidate(x, evidence.get(x, 0.0), probabilities.get(x)) for x in (*ranked, *offered))
