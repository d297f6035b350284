"""What a run is compared with: its index as it is now, and what the run says of its photos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lmm_classifier.decision.reference import Reference
from lmm_classifier.errors import RunError
from lmm_classifier.evaluate.subject import Subject, subject_of
from lmm_classifier.labelling.facts import classifier_of
from lmm_classifier.labelling.queue import Answers, disagreement
from lmm_classifier.labelling.store import Run
from lmm_classifier.types import UNKNOWN, Float64Array, FloatArray


def subject_of_run(run: Run) -> Subject:
    """The classifier of a run, taken apart.

    Raises:
        RunError: its index has vectors of other encoders by now.
        ConfigError, IndexFolderError: as `evaluate.subject.subject_of`.
    """
    subject = subject_of(classifier_of(run.facts))
    now = [space.encoder.fingerprint for space in subject.spaces]
    if now != [encoder.fingerprint for encoder in run.facts.encoders]:
        raise RunError(f"{run.facts.index} was built by other encoders since {run.folder} was made")
    return subject


def references_of(subject: Subject) -> tuple[Reference, ...]:
    """What the index says in closed form, one per encoder."""
    return subject.references(len(subject.spaces))


def vectors_of(run: Run) -> tuple[FloatArray, ...]:
    """Per encoder float32 (m, d), of the m readable photos, in memory."""
    everything = np.arange(len(run.readable()))
    return tuple(run.vectors(space).take(everything) for space in range(len(run.facts.encoders)))


def answers_of(run: Run, vectors: tuple[FloatArray, ...], references: tuple[Reference, ...]) -> Answers:
    """What the run says of its m readable photos, in the terms of the queue.

    Args:
        run: the run.
        vectors: per encoder float32 (m, d).
        references: one per encoder.
    """
    names = ("label", "retrieval_label", "status", "score", "closeness", "possible", "p_value", "used_reranker",
             "candidates")  # fmt: skip
    columns = run.columns(*names).take(pa.array(run.readable()))
    label = columns["label"].to_pylist()
    best = [_first_label(row) for row in columns["candidates"].to_pylist()]
    return Answers(
        labels=tuple(label),
        suggestions=tuple(
            given if given != UNKNOWN else first for given, first in zip(label, best, strict=True)
        ),
        chances=_chances(columns, label),
        closeness=columns["closeness"].to_numpy().astype(np.float64),
        possible=tuple(tuple(labels or ()) for labels in columns["possible"].to_pylist()),
        p_values=pc.fill_null(columns["p_value"], np.nan).to_numpy().astype(np.float64),
        disagreement=disagreement(vectors, references),
    )
