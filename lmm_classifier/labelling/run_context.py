"""What a run is compared with: its index as it is now, and what the run says of its photos."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from lmm_classifier.calibration.context import CalibrationContext, context_of
from lmm_classifier.decision.gates import Gates
from lmm_classifier.decision.reference import Reference
from lmm_classifier.errors import RunError
from lmm_classifier.labelling.acquisition import Answers, disagreement
from lmm_classifier.labelling.incremental import IncrementalClassifier
from lmm_classifier.labelling.run_manifest import classifier_of
from lmm_classifier.labelling.run_store import LabellingRun
from lmm_classifier.monitoring.p_value_log import calibration_of
from lmm_classifier.types import UNKNOWN, FloatArray


def context_of_run(run: LabellingRun) -> CalibrationContext:
    """The classifier of a run, taken apart.

    Raises:
        RunError: its index has vectors of other encoders by now.
        ConfigError, IndexFolderError: as `calibration.context.context_of`.
    """
    context = context_of(classifier_of(run.manifest))
    now = [space.encoder.fingerprint for space in context.spaces]
    if now != [encoder.fingerprint for encoder in run.manifest.encoders]:
        raise RunError(f"{run.manifest.index} was built by other encoders since {run.folder} was made")
    return context


def references_of(context: CalibrationContext) -> tuple[Reference, ...]:
    """What the index says in closed form, one per encoder."""
    return context.references(len(context.spaces))


def vectors_of(run: LabellingRun) -> tuple[FloatArray, ...]:
    """Per encoder float32 (m, d), of the m readable photos, in memory."""
    return tuple(run.vectors(space) for space in range(len(run.manifest.encoders)))


def answers_of(run: LabellingRun, vectors: Sequence[FloatArray], references: Sequence[Reference]) -> Answers:
    """What the run says of its m readable photos, in the terms of the queue.

    Args:
        run: the run.
        vectors: per encoder float32 (m, d).
        references: one per encoder.

    Raises:
        RunError: a shard is damaged.
    """
    names = ("label", "score", "closeness", "possible", "p_value", "used_reranker", "candidates")
    found = run.columns(*names).take(pa.array(run.readable())).to_pydict()
    best = [candidates[0] if candidates else None for candidates in found["candidates"]]
    shares = [candidate["score"] if candidate else 0.0 for candidate in best]
    closeness = np.asarray(found["closeness"], np.float64)
    p_values = np.asarray([np.nan if p is None else p for p in found["p_value"]], np.float64)
    # without a calibration the scores of the labels add up to the closeness already
    chances = np.asarray(shares, np.float64) * np.where(np.isnan(p_values), 1.0, closeness)
    asked = np.asarray(found["used_reranker"], bool)
    return Answers(
        labels=tuple(found["label"]),
        suggestions=tuple(
            label if label != UNKNOWN or not candidate else candidate["label"]
            for label, candidate in zip(found["label"], best, strict=True)
        ),
        chances=np.where(asked, np.asarray(found["score"], np.float64), chances),
        closeness=closeness,
        possible=tuple(tuple(labels) for labels in found["possible"]),
        p_values=p_values,
        disagreement=disagreement(vectors, references),
    )


def learner_of(context: CalibrationContext) -> IncrementalClassifier | None:
    """The index and its decision, ready to learn; None where answers depend on more than photos.

    That is without a calibration, with a closed list of labels, and with a text prior.
    """
    gates = context.classifier.thresholds
    if not isinstance(gates, Gates) or context.prior or context.closed_labels:
        return None
    index = context.index
    return IncrementalClassifier.of(
        [space.vectors for space in context.spaces],
        index.records.codes.astype(np.int64),
        index.labels,
        calibration_of(context.classifier).decider,
        gates,
        context.retrieve.k,
    )
