"""Fit the decision for an index: head, novelty score and gates.

Everything is chosen on queries that are simulated from the index; the cuts also on held-out images, where
there are some. Nothing else can be handed in, so images that are kept for an evaluation cannot be seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np

from lmm_classifier.api.hybrid_classifier import HybridClassifier
from lmm_classifier.calibration.context import CalibrationContext, context_of
from lmm_classifier.calibration.held_out import HeldOut, look_at_held_out
from lmm_classifier.calibration.leave_out import Fold, LeaveOutSimulation
from lmm_classifier.calibration.model_selection import LEARNED, HeadScore, NoveltyChoice, tune
from lmm_classifier.calibration.rerank_trial import TrialPhoto, try_reranker
from lmm_classifier.calibration.targets import CalibrationSample, CalibrationTarget, fit_gates
from lmm_classifier.corpus.corpus import Corpus, SkippedFile
from lmm_classifier.decision.decider import Decider
from lmm_classifier.decision.gates import Gates, route
from lmm_classifier.decision.heads import FUSION, HEADS, HeadSettings, head_probabilities
from lmm_classifier.decision.novelty import SCORES
from lmm_classifier.errors import ConfigError, CorpusError
from lmm_classifier.index.calibration import Calibration, RerankTrial, write_calibration
from lmm_classifier.index.manifest import read_manifest
from lmm_classifier.registry import did_you_mean
from lmm_classifier.types import FloatArray, Scores


def calibrate(
    classifier: HybridClassifier,
    target: CalibrationTarget | None = None,
    *,
    held_out: Corpus | None = None,
    head: str | None = None,
    score: str | None = None,
    photos: Path | None = None,
    seed: int = 0,
) -> tuple[Calibration, tuple[SkippedFile, ...]]:
    """Fit the decision for a classifier's index and store it in the index folder.

    No model is opened but for the text prior, for held-out images, and to try the reranker.

    Args:
        classifier: its index, closed list of labels, top_k and text prior are what is calibrated for.
        target: what to deliver; None asks for the defaults.
        held_out: labelled images of known labels, none of them in the index; the cuts are fitted on them
            instead of on simulated ones.
        head: "knn", "prototype", "gda" or "fusion"; None chooses the one with the lowest log loss.
        score: a name of `decision.novelty.SCORES`, or "combination"; None chooses by AUROC.
        photos: the folder that the index was built from: the reranker is tried on its uncertain photos, and
            from then on asked only where it helps. None does not try it.
        seed: of the simulation.

    Returns:
        The calibration, and the held-out images that could not be read.

    Raises:
        ConfigError: an unknown head or score, an impossible target, or a classifier without an index folder.
        CorpusError: too few images, held-out images that are in the index or whose labels are never
            answered, or an index that was changed meanwhile.
    """
    for name, known_names in ((head, (*HEADS, FUSION)), (score, (*SCORES, LEARNED))):
        if name is not None and name not in known_names:
            raise ConfigError(f"unknown head or score {name!r}{did_you_mean(name, known_names)}")
    target = target or CalibrationTarget()
    context = context_of(classifier)
    chosen = _chosen(context, head, score, seed)
    seen = look_at_held_out(context, chosen.decider, held_out) if held_out is not None else None
    scores, truths = (seen.scores, seen.truths) if seen else (chosen.as_known, chosen.truths)
    gates = fit_gates(as_calibrated(scores, truths, chosen.as_unknown), target, scores.labels)
    trial = _trial(context, chosen, gates, photos, seed) if photos is not None else None
    calibration = _document(context, chosen, target, gates, scores, seen, trial, seed)
    if read_manifest(context.retrieve.index).digest != context.digest:
        raise CorpusError(f"{context.retrieve.index} was changed meanwhile; calibrate again")
    decider = replace(chosen.decider, calibrated=np.sort(scores.closeness.astype(np.float64)))
    digests, skipped = (seen.digests, seen.skipped) if seen else (frozenset[str](), ())
    return write_calibration(context.retrieve.index, calibration, decider, digests), skipped


@dataclass(frozen=True, slots=True, eq=False)
class _Chosen:
    """Head and novelty score, what led to them, and what they make of the simulated images."""

    simulation: LeaveOutSimulation
    heads: dict[str, HeadScore]
    novelty: NoveltyChoice
    decider: Decider
    truths: tuple[str, ...]
    as_known: Scores
    as_unknown: Scores


def _chosen(context: CalibrationContext, head: str | None, score: str | None, seed: int) -> _Chosen:
    simulation = context.left_out(seed)
    tuned = tune(
        simulation,
        len(context.spaces),
        context.references,
        head=head,
        score=score,
        temperature=context.vote.temperature,
    )
    settings, novelty = tuned.decider.settings, tuned.novelty
    vectors = context.spaces[context.named_by].vectors.take(context.rows[simulation.rows])
    as_known, as_unknown = (
        context.scores(simulated_head(simulation, parts, settings), closeness, vectors)
        for parts, closeness in ((simulation.known, novelty.known), (simulation.unknown, novelty.unknown))
    )
    truths = tuple(context.index.labels[code] for code in simulation.truths.tolist())
    return _Chosen(simulation, tuned.heads, novelty, tuned.decider, truths, as_known, as_unknown)


def simulated_head(
    simulation: LeaveOutSimulation, parts: Sequence[Fold], settings: HeadSettings
) -> FloatArray:
    """Probabilities (m, c) of the chosen head; (0, c) where nothing was simulated."""
    if not parts:
        return np.empty((0, len(simulation.counts)), np.float32)
    return simulation.gather(parts, lambda part: head_probabilities(part.queries, part.references, settings))


def as_calibrated(known: Scores, truths: Sequence[str], unknown: Scores) -> CalibrationSample:
    """What known images of these labels and unknown ones look like."""
    columns = {label: j for j, label in enumerate(known.labels)}
    true = np.asarray([columns[truth] for truth in truths], np.int64)
    return CalibrationSample(
        known.closeness.astype(np.float64),
        known.values.argmax(axis=1),
        known.values[np.arange(len(true)), true].astype(np.float64),
        unknown.closeness.astype(np.float64),
    )


def _trial(
    context: CalibrationContext, chosen: _Chosen, gates: Gates, photos: Path, seed: int
) -> RerankTrial:
    rows = context.rows[chosen.simulation.rows]
    paths = context.index.records.paths(rows)
    return try_reranker(
        context.reranker,
        [
            TrialPhoto(photos / path, truth, partial(context.embeddings, row))
            for path, truth, row in zip(paths, chosen.truths, rows.tolist(), strict=True)
        ],
        chosen.as_known,
        chosen.as_unknown,
        context.open_set.in_force(gates),
        chosen.simulation.near,
        seed,
        context.classifier.limits,
    )


def _document(
    context: CalibrationContext,
    chosen: _Chosen,
    target: CalibrationTarget,
    gates: Gates,
    scores: Scores,
    seen: HeldOut | None,
    trial: RerankTrial | None,
    seed: int,
) -> Calibration:
    in_force = context.open_set.in_force(gates)
    return Calibration(
        gates=gates,
        head=chosen.decider.settings,
        novelty=chosen.decider.combination,
        depth=chosen.decider.depth,
        labels=context.closed_labels,
        text_weight=context.prior.weight if context.prior else 0.0,
        text_temperature=context.prior.temperature if context.prior else None,
        target=str(target),
        n_images=len(chosen.truths),
        n_held_out=len(seen.truths) if seen else 0,
        seed=seed,
        heads={name: asdict(result) for name, result in chosen.heads.items()},
        auroc=chosen.novelty.auroc,
        expected=_expected(scores, in_force),
        expected_unknown=_expected(chosen.as_unknown, in_force),
        encoders=tuple(
            space.encoder.fingerprint for space in context.spaces[: len(chosen.decider.references)]
        ),
        index_digest=context.digest,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        rerank=trial,
    )


def _expected(scores: Scores, gates: Gates) -> dict[str, float]:
    counts = Counter(routed.route for routed in route(scores, gates)) if len(scores.values) else Counter()
    return {name: count / len(scores.values) for name, count in sorted(counts.items())}
