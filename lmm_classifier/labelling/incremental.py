"""The decision of an index, and how it grows while a person answers: in memory, nothing is written.

Two ways to take in new photos, both on references that hold them:

`learned` keeps head, novelty score and gates. A photo of a label that the index now has looks known at once,
and it takes one eigendecomposition: for the queue, between two answers.

`recalibrated` fits these anew too, as `lmm-classifier index add` and `calibrate` would: an index that has
grown refuses its old calibration. Some novelty scores shift with the number of labels, so that a kept cut
rejects too much. On flowers12 (6 splits, `benchmarks/labelling.py simulate`) accuracy after 40 looks is
.809 with it and .776 without in random order, where labels begin with one photo; .964 and .949 in the
queue's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lmm_classifier.calibration.calibrate import as_calibrated, simulated_head
from lmm_classifier.calibration.leave_out import leave_out
from lmm_classifier.calibration.model_selection import tune
from lmm_classifier.calibration.targets import CalibrationTarget, fit_gates
from lmm_classifier.decision.decider import Decider
from lmm_classifier.decision.gates import Gates, Routed, route
from lmm_classifier.decision.heads import Queries
from lmm_classifier.decision.reference import Moments, Reference, fit_reference
from lmm_classifier.index.engine import ExactSearch, Search
from lmm_classifier.index.nearest_others import near_threshold
from lmm_classifier.index.records import Record, Records
from lmm_classifier.index.search import VectorIndex
from lmm_classifier.index.vectors import Vectors
from lmm_classifier.labelling.acquisition import Answers, disagreement
from lmm_classifier.types import UNKNOWN, EncoderContract, FloatArray, IntArray, Scores

_DEFAULT_TARGET = CalibrationTarget()


@dataclass(frozen=True, slots=True, eq=False)
class IncrementalClassifier:
    """An index in memory and its calibrated decision.

    Attributes:
        labels: the c labels, sorted.
        codes: int64 (n,), columns of the labels of its photos.
        spaces: per encoder their vectors; the first is searched, exactly.
        references: one per encoder.
        decider, gates: the decision.
        depth: neighbours asked for when calibrating.
        moments: per encoder, what the references were fitted from.
        searches: of the first encoder, part by part of its vectors, in their order.
    """

    labels: tuple[str, ...]
    codes: IntArray
    spaces: tuple[Vectors, ...]
    references: tuple[Reference, ...]
    decider: Decider
    gates: Gates
    depth: int
    moments: tuple[Moments, ...]
    searches: tuple[Search, ...]

    @classmethod
    def of(
        cls,
        spaces: Sequence[Vectors],
        codes: IntArray,
        labels: Sequence[str],
        decider: Decider,
        gates: Gates,
        depth: int,
    ) -> IncrementalClassifier:
        """An index as it was calibrated.

        Args:
            spaces: per encoder the n vectors.
            codes: int64 (n,), columns of their labels.
            labels: sorted.
            decider: as calibrated.
            gates: as calibrated.
            depth: neighbours asked for when calibrating, `top_k` of the settings.
        """
        everything = np.ones(len(codes), bool)
        moments = tuple(Moments.of(s.blocks(codes, everything), len(labels), s.dim) for s in spaces)
        references = tuple(fit_reference(each) for each in moments)
        used = replace(decider, references=references[: len(decider.references)])
        search = ExactSearch(spaces[0])
        return cls(tuple(labels), codes, tuple(spaces), references, used, gates, depth, moments, (search,))

    @classmethod
    def calibrated(
        cls,
        vectors: Sequence[FloatArray],
        labels: Sequence[str],
        *,
        depth: int = 20,
        target: CalibrationTarget = _DEFAULT_TARGET,
        seed: int = 0,
    ) -> IncrementalClassifier:
        """An index of these photos, calibrated on itself.

        Args:
            vectors: per encoder float32 (n, d), unit rows.
            labels: n of them.
            depth: neighbours per photo.
            target: of the calibration.
            seed: of its simulation.

        Raises:
            CorpusError: too few photos to calibrate on.
        """
        names = tuple(sorted(set(labels)))
        codes = np.searchsorted(names, labels).astype(np.int64)
        spaces = [Vectors([each], each.shape[1]) for each in vectors]
        decider, gates = _fit(spaces, codes, names, depth, target, seed)
        return cls.of(spaces, codes, names, decider, gates, depth)

    def learned(self, vectors: Sequence[FloatArray], labels: Sequence[str]) -> IncrementalClassifier:
        """With more photos. Head, novelty score and gates stay.

        Args:
            vectors: per encoder float32 (m, d), unit rows.
            labels: m of them, new ones perhaps; UNKNOWN is none.
        """
        if UNKNOWN in labels:
            raise ValueError(f"{UNKNOWN!r} is no label to learn")
        if not len(labels):
            return self
        names = tuple(sorted({*self.labels, *labels}))
        moved = np.searchsorted(names, self.labels)
        added = np.searchsorted(names, labels).astype(np.int64)
        new = [Vectors([each], space.dim) for each, space in zip(vectors, self.spaces, strict=True)]
        wanted = np.ones(len(added), bool)
        moments = tuple(
            _widened(old, moved, len(names)) + Moments.of(each.blocks(added, wanted), len(names), each.dim)
            for old, each in zip(self.moments, new, strict=True)
        )
        references = tuple(fit_reference(each) for each in moments)
        return replace(
            self,
            labels=names,
            codes=np.concatenate([moved[self.codes], added]).astype(np.int64),
            spaces=tuple(Vectors([*s.parts, *n.parts], s.dim) for s, n in zip(self.spaces, new, strict=True)),
            references=references,
            decider=replace(self.decider, references=references[: len(self.decider.references)]),
            moments=moments,
            searches=(*self.searches, ExactSearch(new[0])),
        )

    def recalibrated(
        self, target: CalibrationTarget = _DEFAULT_TARGET, seed: int = 0
    ) -> IncrementalClassifier:
        """The same photos, with head, novelty score and gates fitted anew.

        Raises:
            CorpusError: too few photos.
        """
        decider, gates = _fit(self.spaces, self.codes, self.labels, self.depth, target, seed)
        return replace(self, decider=decider, gates=gates)

    def answers(self, vectors: Sequence[FloatArray]) -> Answers:
        """What it says of n photos.

        Args:
            vectors: per encoder float32 (n, d), unit rows.
        """
        decided = self.decider.decide(self._queries(vectors))
        scores = Scores(self.labels, decided.probabilities, decided.known.astype(np.float32))
        routed: Sequence[Routed] = route(scores, self.gates) if len(decided.known) else ()
        suggestions = tuple(self.labels[each.best] for each in routed)
        return Answers(
            labels=tuple(
                UNKNOWN if each.route == "unknown" else label
                for each, label in zip(routed, suggestions, strict=True)
            ),
            suggestions=suggestions,
            chances=decided.probabilities.max(axis=1).astype(np.float64) * decided.known,
            closeness=decided.known,
            possible=tuple(each.candidates for each in routed),
            p_values=decided.p_values,
            disagreement=disagreement(vectors, self.references),
        )

    def _queries(self, vectors: Sequence[FloatArray]) -> Queries:
        similarity, rows, start = [], [], 0
        for search, size in zip(self.searches, self._sizes(), strict=True):
            found = search.search(vectors[0], min(self.decider.depth, size))
            similarity.append(found.similarity.clip(-1, 1))
            rows.append(found.rows + start)
            start += size
        near, where = np.concatenate(similarity, axis=1), np.concatenate(rows, axis=1)
        best = np.argsort(-near, axis=1, kind="stable")[:, : self.decider.depth]
        return Queries(
            tuple(vectors),
            np.take_along_axis(near, best, 1),
            self.codes[np.take_along_axis(where, best, 1)],
        )

    def _sizes(self) -> list[int]:
        """Photos of each search: the first has all parts but those that were learned one by one."""
        parts = [len(part) for part in self.spaces[0].parts]
        learned = parts[len(parts) - (len(self.searches) - 1) :]
        return [len(self.codes) - sum(learned), *learned]


def _widened(moments: Moments, moved: IntArray, labels: int) -> Moments:
    counts, sums = np.zeros(labels), np.zeros((labels, moments.sums.shape[1]))
    counts[moved], sums[moved] = moments.counts, moments.sums
    return Moments(counts, sums, moments.scatter)


def _fit(
    spaces: Sequence[Vectors],
    codes: IntArray,
    labels: Sequence[str],
    depth: int,
    target: CalibrationTarget,
    seed: int,
) -> tuple[Decider, Gates]:
    """As `calibrate` fits an index without a text prior, each photo a content of its own."""
    contents = np.arange(len(codes))
    records = Records.of(Record(str(i), labels[code], str(i)) for i, code in enumerate(codes.tolist()))
    contract = EncoderContract("", "", "", "", "", spaces[0].dim, "float32")  # nothing is encoded
    near = near_threshold(VectorIndex(contract, records, spaces[0], "photos in memory"), contents, contents)
    simulation = leave_out(
        spaces,
        codes,
        contents,
        labels=len(labels),
        near=1.0 if near is None else near,
        depth=min(depth, len(codes) - 1),
        seed=seed,
    )
    everything = np.ones(len(codes), bool)

    def references(count: int) -> tuple[Reference, ...]:
        return tuple(
            fit_reference(Moments.of(space.blocks(codes, everything), len(labels), space.dim))
            for space in spaces[:count]
        )

    tuned = tune(simulation, len(spaces), references)
    as_known, as_unknown = (
        Scores(
            tuple(labels), simulated_head(simulation, parts, tuned.decider.settings), known.astype(np.float32)
        )
        for parts, known in (
            (simulation.known, tuned.novelty.known),
            (simulation.unknown, tuned.novelty.unknown),
        )
    )
    truths = [labels[code] for code in simulation.truths.tolist()]
    return tuned.decider, fit_gates(as_calibrated(as_known, truths, as_unknown), target, labels)
