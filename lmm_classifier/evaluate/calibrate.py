"""Fit the decision for an index: head, novelty score and gates.

Everything is chosen on the index itself, rehearsed; the cuts also on held-out images, where there are some.
Nothing else can be handed in, so images that are kept for an evaluation cannot be seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from lmm_classifier.classifier import HybridClassifier
from lmm_classifier.corpus.corpus import Corpus, SkippedFile
from lmm_classifier.corpus.images import load_image_file
from lmm_classifier.decision.decider import Decider, encoders_needed
from lmm_classifier.decision.gates import Gates, route
from lmm_classifier.decision.heads import FUSION, HEADS, HeadSettings, Queries, head_probabilities
from lmm_classifier.decision.novelty import SCORES
from lmm_classifier.decision.reference import Moments, Reference, fit_reference
from lmm_classifier.errors import ConfigError, CorpusError, ImageError
from lmm_classifier.evaluate.leave_one_out import near_threshold
from lmm_classifier.evaluate.rehearsal import LEAST_IMAGES, Part, Rehearsal, rehearse
from lmm_classifier.evaluate.rerank_trial import try_reranker
from lmm_classifier.evaluate.target import Calibrated, Target, fit_gates
from lmm_classifier.evaluate.tuning import LEARNED, choose_head, choose_novelty
from lmm_classifier.index.calibration import Calibration, write_calibration
from lmm_classifier.index.files import is_single_file
from lmm_classifier.index.manifest import read_manifest
from lmm_classifier.index.search import VectorIndex, encoders_of, open_index
from lmm_classifier.index.vectors import Vectors
from lmm_classifier.pipeline import Pipeline
from lmm_classifier.registry import did_you_mean
from lmm_classifier.steps.embed import Embed
from lmm_classifier.steps.open_set import OpenSet
from lmm_classifier.steps.rerank import Rerank
from lmm_classifier.steps.retrieve import Retrieve
from lmm_classifier.steps.text_prior import TextPrior
from lmm_classifier.steps.vote import Vote
from lmm_classifier.types import Float64Array, FloatArray, IntArray, Sample, Scores, required


@dataclass(frozen=True, slots=True)
class _Corner:
    """The steps of a classifier that a calibration is made for."""

    retrieve: Retrieve
    vote: Vote
    prior: TextPrior | None
    open_set: OpenSet
    families: frozenset[str]


def calibrate(
    classifier: HybridClassifier,
    target: Target | None = None,
    *,
    held_out: Corpus | None = None,
    head: str | None = None,
    score: str | None = None,
    photos: Path | None = None,
    seed: int = 0,
) -> tuple[Calibration, tuple[SkippedFile, ...]]:
    """Fit the decision for a classifier's index and store it in the index folder.

    No model is opened but for the text prior, and for held-out images.

    Args:
        classifier: its index, closed list of labels, top_k and text prior are what is calibrated for.
        target: what to deliver; None asks for the defaults.
        held_out: labelled images of known labels, none of them in the index; the cuts are fitted on them
            instead of on rehearsed ones.
        head: "knn", "prototype", "gda" or "fusion"; None chooses the one with the lowest log loss.
        score: a name of `decision.novelty.SCORES`, or "combination"; None chooses by AUROC.
        photos: the folder that the index was built from: the reranker is tried on its uncertain photos, and
            from then on asked only where it helps. None does not try it.
        seed: of the rehearsal.

    Returns:
        The calibration, and the held-out images that could not be read.

    Raises:
        ConfigError: an unknown head or score, an impossible target, or a classifier without an index folder.
        CorpusError: too few images, or held-out images that are in the index or have labels it lacks.
    """
    target = target or Target()
    for name, known_names in ((head, (*HEADS, FUSION)), (score, (*SCORES, LEARNED))):
        if name is not None and name not in known_names:
            raise ConfigError(f"unknown head or score {name!r}{did_you_mean(name, known_names)}")
    corner = _corner(classifier)
    digest = read_manifest(corner.retrieve.index).digest
    spaces = _spaces(corner)
    index, rows = spaces[0], spaces[0].records.rows_of(corner.retrieve.labels or spaces[0].labels)
    if not rows.size:
        raise ConfigError(
            f"{corner.retrieve.index} has none of the configured labels; it has {', '.join(index.labels)}"
        )
    rehearsal = _rehearsed(spaces, rows, corner.retrieve.k, seed)
    settings, heads = choose_head(rehearsal, len(spaces), head, corner.vote.temperature)
    novelty = choose_novelty(rehearsal, settings, len(spaces), score)
    used = encoders_needed([*settings.weights, *novelty.combination.names])
    references = tuple(_reference(space, rows) for space in spaces[:used])
    decider = Decider(references, settings, rehearsal.depth, novelty.combination, np.sort(novelty.known))
    vectors = spaces[_named_by(corner, spaces)].vectors.take(rows[rehearsal.rows])
    as_known, as_unknown = (
        _mixed(corner, index.labels, _head(rehearsal, parts, settings), closeness, vectors)
        for parts, closeness in ((rehearsal.known, novelty.known), (rehearsal.unknown, novelty.unknown))
    )
    truths = tuple(index.labels[code] for code in rehearsal.truths.tolist())
    known, names = as_known, truths
    digests, skipped = frozenset[str](), tuple[SkippedFile, ...]()
    if held_out is not None:
        known, names, digests, skipped = _held_out(classifier, corner, decider, index, held_out)
    gates = fit_gates(_seen(known, names, as_unknown), target, known.labels)
    in_force = corner.open_set.in_force(gates)
    trial = None
    if photos is not None:
        files = [photos / path for path in index.records.paths(rows[rehearsal.rows])]
        trial = try_reranker(
            _reranker(classifier), files, truths, as_known, as_unknown, in_force, seed, classifier.limits
        )
    calibration = Calibration(
        gates=gates,
        head=settings,
        novelty=novelty.combination,
        depth=rehearsal.depth,
        labels=corner.retrieve.labels and tuple(sorted(corner.retrieve.labels)),
        text_weight=corner.prior.weight if corner.prior else 0.0,
        text_temperature=corner.prior.temperature if corner.prior else None,
        target=str(target),
        n_images=len(rehearsal.rows),
        n_held_out=len(digests),
        seed=seed,
        heads={name: asdict(result) for name, result in heads.items()},
        auroc=novelty.auroc,
        expected=_expected(known, in_force),
        expected_unknown=_expected(as_unknown, in_force),
        encoders=tuple(space.encoder.fingerprint for space in spaces[:used]),
        index_digest=digest,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        rerank=trial,
    )
    if read_manifest(corner.retrieve.index).digest != digest:
        raise CorpusError(f"{corner.retrieve.index} was changed meanwhile; calibrate again")
    calibrated = np.sort(known.closeness.astype(np.float64))
    decider = replace(decider, calibrated=calibrated)
    return write_calibration(corner.retrieve.index, calibration, decider, digests), skipped


def _seen(known: Scores, truths: Sequence[str], unknown: Scores) -> Calibrated:
    columns = {label: j for j, label in enumerate(known.labels)}
    true = np.asarray([columns[truth] for truth in truths], np.int64)
    return Calibrated(
        known.closeness.astype(np.float64),
        known.values.argmax(axis=1),
        known.values[np.arange(len(true)), true].astype(np.float64),
        unknown.closeness.astype(np.float64),
    )


def _corner(classifier: HybridClassifier) -> _Corner:
    retrieve, vote = classifier.steps_of(Retrieve), classifier.steps_of(Vote)
    if len(retrieve) != 1 or len(vote) != 1:
        raise ConfigError("calibration needs a pipeline with one `retrieve` and one `vote`")
    if is_single_file(retrieve[0].index):
        raise ConfigError("calibration is kept in an index folder; set retrieval.index_path to one")
    priors = [prior for prior in classifier.steps_of(TextPrior) if prior.weight]
    families = frozenset(step.encoder.family for step in classifier.steps_of(Embed))
    open_set = next(iter(classifier.steps_of(OpenSet)), OpenSet())
    return _Corner(retrieve[0], vote[0], priors[0] if priors else None, open_set, families)


def _reranker(classifier: HybridClassifier) -> Rerank:
    steps = classifier.steps_of(Rerank)
    if len(steps) != 1:
        raise ConfigError(
            "photos are given to try the reranker on, and the settings have none: enable `rerank`"
        )
    return steps[0]


def _spaces(corner: _Corner) -> list[VectorIndex]:
    """The spaces of the index whose encoders photos go through; the first is searched."""
    path = corner.retrieve.index
    used = [contract for contract in encoders_of(path) if contract.name in corner.families]
    if not used:
        raise ConfigError(
            f"{path} was built by {', '.join(c.name for c in encoders_of(path))}, the settings say "
            f"{', '.join(sorted(corner.families)) or 'none'}; set `encoder` to match"
        )
    return [open_index(path, contract) for contract in used]


def _named_by(corner: _Corner, spaces: Sequence[VectorIndex]) -> int:
    """Number of the encoder that the text prior compares names with."""
    family = corner.prior.encoder.family if corner.prior else spaces[0].encoder.name
    return next((i for i, space in enumerate(spaces) if space.encoder.name == family), 0)


def _rehearsed(spaces: Sequence[VectorIndex], rows: IntArray, depth: int, seed: int) -> Rehearsal:
    index = spaces[0]
    contents = index.records.contents()[rows]
    _, first = np.unique(contents, return_index=True)
    near = near_threshold(index, index.records.contents(), rows[first])
    codes = index.records.codes[rows].astype(np.int64)
    return rehearse(
        [_of_rows(space, rows) for space in spaces],
        codes,
        contents,
        labels=len(index.labels),
        near=1.0 if near is None else near,
        depth=min(depth, len(rows) - 1),
        seed=seed,
    )


def _of_rows(space: VectorIndex, rows: IntArray) -> Vectors:
    if len(rows) == len(space):
        return space.vectors
    return Vectors([space.vectors.take(rows)], space.encoder.dim)


def _reference(space: VectorIndex, rows: IntArray) -> Reference:
    codes = space.records.codes.astype(np.int64)
    wanted = np.zeros(len(space), bool)
    wanted[rows] = True
    moments = Moments.of(space.vectors.blocks(codes, wanted), len(space.labels), space.encoder.dim)
    return fit_reference(moments)


def _head(rehearsal: Rehearsal, parts: Sequence[Part], settings: HeadSettings) -> FloatArray:
    """Probabilities (m, c) of the chosen head; (0, c) where nothing was rehearsed."""
    if not parts:
        return np.empty((0, len(rehearsal.counts)), np.float32)
    return rehearsal.gather(parts, lambda part: head_probabilities(part.queries, part.references, settings))


def _mixed(
    corner: _Corner,
    labels: tuple[str, ...],
    probabilities: FloatArray,
    known: Float64Array,
    vectors: FloatArray,
) -> Scores:
    """The scores that the steps up to `open_set` would give."""
    scores = Scores(labels, probabilities, known.astype(np.float32))
    return corner.prior.mixed(scores, vectors) if corner.prior and len(probabilities) else scores


def _expected(scores: Scores, gates: Gates) -> dict[str, float]:
    counts = Counter(routed.route for routed in route(scores, gates)) if len(scores.values) else Counter()
    return {name: count / len(scores.values) for name, count in sorted(counts.items())}


def _held_out(
    classifier: HybridClassifier, corner: _Corner, decider: Decider, index: VectorIndex, held_out: Corpus
) -> tuple[Scores, tuple[str, ...], frozenset[str], tuple[SkippedFile, ...]]:
    """Scores and labels of images outside the index, their digests, and what could not be read."""
    skipped: list[SkippedFile] = []
    digests: set[str] = set()
    steps = tuple(step for step in classifier.pipeline.steps if step.name in {"embed", "retrieve"})
    samples = list(
        Pipeline(steps, classifier.pipeline.batch_size).run(
            _samples(classifier, held_out, index, corner.retrieve.labels or index.labels, skipped, digests)
        )
    )
    if len(samples) < LEAST_IMAGES:
        raise CorpusError(
            f"{held_out.root}: {len(samples)} readable images; calibration needs at least {LEAST_IMAGES}"
        )
    vectors = tuple(
        np.concatenate([sample.embeddings[contract.fingerprint] for sample in samples])
        for contract in encoders_of(corner.retrieve.index)
        if contract.fingerprint in samples[0].embeddings
    )
    near = [required(sample.neighbours) for sample in samples]
    rows = np.concatenate([neighbours.rows for neighbours in near])
    codes = np.where(rows >= 0, index.records.codes[rows], -1).astype(np.int64)
    similarity = np.concatenate([neighbours.similarity for neighbours in near])
    decided = decider.decide(Queries(vectors, similarity, codes))
    shown = vectors[_named_by(corner, _spaces(corner))]
    scores = _mixed(corner, index.labels, decided.probabilities, decided.known, shown)
    truths = tuple(required(sample.truth) for sample in samples)
    return scores, truths, frozenset(digests), tuple(skipped)


def _samples(
    classifier: HybridClassifier,
    held_out: Corpus,
    index: VectorIndex,
    labels: Sequence[str],
    skipped: list[SkippedFile],
    digests: set[str],
) -> Iterator[Sample]:
    """Open the held-out images one after the other, refusing those that would teach nothing."""
    if strangers := sorted(set(held_out.labels) - (set(labels) & set(index.labels))):
        raise CorpusError(
            f"{held_out.root}: no answer can be {', '.join(map(repr, strangers[:3]))}; thresholds are fitted "
            "on images of labels that can be answered, so leave these out"
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
        digests.add(loaded.sha256)
        yield Sample.from_image(item.path, loaded.image, truth=item.label)
