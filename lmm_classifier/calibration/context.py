"""What a calibration is made for: the steps of a classifier up to its decision, and its index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmm_classifier.api.hybrid_classifier import HybridClassifier
from lmm_classifier.calibration.leave_out import LeaveOutSimulation, leave_out
from lmm_classifier.decision.reference import Moments, Reference, fit_reference
from lmm_classifier.errors import ConfigError
from lmm_classifier.index.manifest import read_manifest
from lmm_classifier.index.nearest_others import near_threshold
from lmm_classifier.index.search import VectorIndex, encoders_of, open_index
from lmm_classifier.index.vectors import Vectors
from lmm_classifier.steps.embed import Embed
from lmm_classifier.steps.open_set import OpenSet
from lmm_classifier.steps.rerank import Rerank
from lmm_classifier.steps.retrieve import Retrieve
from lmm_classifier.steps.text_prior import TextPrior
from lmm_classifier.steps.vote import Vote
from lmm_classifier.storage.atomic_files import is_single_file
from lmm_classifier.types import Float64Array, FloatArray, IntArray, Scores


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationContext:
    """A classifier, taken apart.

    Attributes:
        classifier: the whole of it.
        retrieve, vote, open_set: its steps.
        prior: its text prior; None where it has none, or one without weight.
        spaces: of the index, one per encoder that photos go through; the first is searched.
        rows: int64 (n,), the images whose labels can be answered.
        digest: state of the index.
    """

    classifier: HybridClassifier
    retrieve: Retrieve
    vote: Vote
    open_set: OpenSet
    prior: TextPrior | None
    spaces: tuple[VectorIndex, ...]
    rows: IntArray
    digest: str

    @property
    def index(self) -> VectorIndex:
        """The space that is searched."""
        return self.spaces[0]

    @property
    def closed_labels(self) -> tuple[str, ...] | None:
        """The closed list of labels, sorted; None where all of the index can be answered."""
        return self.retrieve.labels and tuple(sorted(self.retrieve.labels))

    @property
    def reranker(self) -> Rerank:
        """The one step that asks a model.

        Raises:
            ConfigError: there is none.
        """
        steps = self.classifier.steps_of(Rerank)
        if len(steps) != 1:
            raise ConfigError(
                "photos are given to try the reranker on, and the settings have none: enable `rerank`"
            )
        return steps[0]

    @property
    def named_by(self) -> int:
        """Number of the encoder that the text prior compares names with."""
        family = self.prior.encoder.family if self.prior else self.index.encoder.name
        return next((i for i, space in enumerate(self.spaces) if space.encoder.name == family), 0)

    def left_out(self, seed: int) -> LeaveOutSimulation:
        """Its images, asked as known and as unknown."""
        records = self.index.records
        contents = records.contents()
        _, first = np.unique(contents[self.rows], return_index=True)
        near = near_threshold(self.index, contents, self.rows[first])
        return leave_out(
            [self._of_rows(space) for space in self.spaces],
            records.codes[self.rows].astype(np.int64),
            contents[self.rows],
            labels=len(self.index.labels),
            near=1.0 if near is None else near,
            depth=min(self.retrieve.k, len(self.rows) - 1),
            seed=seed,
        )

    def references(self, count: int) -> tuple[Reference, ...]:
        """What all images say in closed form, of the first encoders."""
        wanted = np.zeros(len(self.index), bool)
        wanted[self.rows] = True
        codes = self.index.records.codes.astype(np.int64)
        return tuple(
            fit_reference(
                Moments.of(space.vectors.blocks(codes, wanted), len(space.labels), space.encoder.dim)
            )
            for space in self.spaces[:count]
        )

    def scores(self, probabilities: FloatArray, known: Float64Array, vectors: FloatArray) -> Scores:
        """What the steps up to `open_set` give.

        Args:
            probabilities: float32 (r, c) of the head, over the labels of the index.
            known: float64 (r,), how known each region looks.
            vectors: float32 (r, d), of the encoder `named_by`.
        """
        scores = Scores(self.index.labels, probabilities, known.astype(np.float32))
        return self.prior.mixed(scores, vectors) if self.prior and len(probabilities) else scores

    def embeddings(self, row: int) -> dict[str, FloatArray]:
        """What the encoders made of an image of the index: fingerprint -> float32 (1, d)."""
        return {space.encoder.fingerprint: space.vectors.take(np.asarray([row])) for space in self.spaces}

    def _of_rows(self, space: VectorIndex) -> Vectors:
        if len(self.rows) == len(space):
            return space.vectors
        return Vectors([space.vectors.take(self.rows)], space.encoder.dim)


def context_of(classifier: HybridClassifier) -> CalibrationContext:
    """Take a classifier apart.

    Raises:
        ConfigError: it has other steps than one `retrieve` and one `vote`, no index folder, or one of
            another encoder or without the configured labels.
    """
    retrieve, vote = classifier.steps_of(Retrieve), classifier.steps_of(Vote)
    if len(retrieve) != 1 or len(vote) != 1:
        raise ConfigError("calibration needs a pipeline with one `retrieve` and one `vote`")
    folder = retrieve[0].index
    if is_single_file(folder):
        raise ConfigError("calibration is kept in an index folder; set retrieval.index_path to one")
    digest = read_manifest(folder).digest
    spaces = _spaces(classifier, retrieve[0])
    rows = spaces[0].records.rows_of(retrieve[0].labels or spaces[0].labels)
    if not rows.size:
        raise ConfigError(f"{folder} has none of the configured labels; it has {', '.join(spaces[0].labels)}")
    return CalibrationContext(
        classifier,
        retrieve[0],
        vote[0],
        next(iter(classifier.steps_of(OpenSet)), OpenSet()),
        next((prior for prior in classifier.steps_of(TextPrior) if prior.weight), None),
        tuple(spaces),
        rows,
        digest,
    )


def _spaces(classifier: HybridClassifier, retrieve: Retrieve) -> Sequence[VectorIndex]:
    families = {step.encoder.family for step in classifier.steps_of(Embed)}
    contracts = encoders_of(retrieve.index)
    used = [contract for contract in contracts if contract.name in families]
    if not used:
        raise ConfigError(
            f"{retrieve.index} was built by {', '.join(c.name for c in contracts)}, the settings say "
            f"{', '.join(sorted(families)) or 'none'}; set `encoder` to match"
        )
    return [open_index(retrieve.index, contract) for contract in used]
