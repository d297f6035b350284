"""What flows through the pipeline: a sample that grows as it passes the steps.

Axes used in every shape comment of this package:

    n  samples (images)
    r  regions of one image; row 0 is always the whole image
    d  embedding dimensions
    k  neighbours kept per region
    c  labels

Every class is frozen, and arrays are made read-only on entry: a step cannot change what another step
made, only return `dataclasses.replace(sample, field=...)`. Similarities and scores are always "higher is
more like". This module imports nothing of the package.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

FloatArray = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Box = tuple[int, int, int, int]
Status = Literal["known", "uncertain", "unknown"]
Route = Literal["accept", "unknown", "rerank", "review"]
T = TypeVar("T")

_PADDING = (124, 116, 104)
"""Mean colour of ImageNet (x 255 of .485, .456, .406): nearly zero after a model's normalisation."""

UNKNOWN = "unknown"
"""The label of an answer that no label of the corpus fits; reserved wherever unknowns are allowed."""


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """A part of one image.

    Attributes:
        box: (x0, y0, x1, y1) in pixels, half-open, origin at the top left.
        kind: what it shows: "image" for the whole frame, else "person", "face", ...
        source: name of the step that proposed it; "image" for the whole frame.
        score: detector confidence in [0, 1].
        mask: bool (h, w) of the whole image, read-only, or None for the full box.
    """

    box: Box
    kind: str = "image"
    source: str = "image"
    score: float = 1.0
    mask: BoolArray | None = None

    def __post_init__(self) -> None:
        if self.mask is not None:
            if self.mask.ndim != 2 or self.mask.dtype != np.bool_:
                raise ValueError(f"mask must be bool (h, w), got {self.mask.dtype} {self.mask.shape}")
            self.mask.setflags(write=False)


@dataclass(frozen=True, slots=True)
class Target:
    """The one region that the following steps look at, and how it came to be that one.

    Attributes:
        wanted: "whole_image", or the kind of region that was asked for, such as "person".
        row: its row among the sample's regions.
        box: what is cut out, (x0, y0, x1, y1) px: the region's box, grown where padding was asked for.
        square: whether the cut is padded to a square, so that a model that crops the centre sees it all.
        fallback: why it is the whole image although another was wanted; None where it is as wanted.
    """

    wanted: str
    row: int
    box: Box
    square: bool
    fallback: str | None = None

    def cut(self, image: Image.Image) -> Image.Image:
        """The pixels of the box."""
        crop = image if self.box == (0, 0, *image.size) else image.crop(self.box)
        if not self.square or crop.width == crop.height:
            return crop
        side = max(crop.size)
        padded = Image.new("RGB", (side, side), _PADDING)
        padded.paste(crop, ((side - crop.width) // 2, (side - crop.height) // 2))
        return padded


@dataclass(frozen=True, slots=True)
class Skip:
    """Why the following steps leave a sample alone: something they need is not in the photo.

    Attributes:
        code: for programs, such as "no_person" or "no_face".
        reason: one sentence for people.
    """

    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class EncoderContract:
    """Everything that decides which vector an image gets. Vectors of two contracts never mix.

    Attributes:
        name: encoder family, as in the registry.
        weights: hub id, local folder name, or "" for an encoder without weights.
        revision: revision asked of the hub.
        weights_digest: SHA-256 over the loaded tensors; "" without weights.
        preprocessing: canonical JSON of what decides the vectors beside the weights: how an image becomes
            the model's input and, where a family leaves a choice, activation and pooling.
        dim: d, length of the vectors.
        dtype: arithmetic of the model, "float32" or "bfloat16". Vectors are always stored as float32.
    """

    name: str
    weights: str
    revision: str
    weights_digest: str
    preprocessing: str
    dim: int
    dtype: str

    @property
    def fingerprint(self) -> str:
        """Short digest of what decides the vectors: `weights` and `revision` only say where from."""
        return _fingerprint(self)


@lru_cache(maxsize=64)  # every photo is asked for its vector by it
def _fingerprint(contract: EncoderContract) -> str:
    identity = asdict(contract)
    if contract.weights_digest:
        del identity["weights"], identity["revision"]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, eq=False)
class Neighbours:
    """Nearest labelled images of each region, best first.

    Attributes:
        similarity: float32 (r, k), cosine in [-1, 1]; 0 where padded.
        rows: int64 (r, k), row in the index; -1 pads.
        labels: r tuples of the labels of the rows that are not padding.
        paths: r tuples of their paths, relative to the corpus root.
    """

    similarity: FloatArray
    rows: IntArray
    labels: tuple[tuple[str, ...], ...]
    paths: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        if self.similarity.ndim != 2 or self.similarity.shape != self.rows.shape:
            raise ValueError(
                f"similarity and rows must both be (r, k), got {self.similarity.shape} and {self.rows.shape}"
            )
        self.similarity.setflags(write=False)
        self.rows.setflags(write=False)


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Evidence per label, never per neighbour.

    Attributes:
        labels: the c labels in the running, sorted.
        values: float32 (r, c) in [0, 1]: share of the vote times the similarity behind it. A row sums to
            the weighted mean similarity of the region's neighbours, so the sum, in [0, 1], says how close
            the corpus is and the entries say how that closeness is shared out. `text_prior` keeps this,
            and counts labels without images as near as their names fit. Of a calibrated vote:
            probabilities, which sum to 1 and say nothing of closeness.
        known: float32 (r,) in [0, 1], how known each region looks; None where the sum of its values says it.
    """

    labels: tuple[str, ...]
    values: FloatArray
    known: FloatArray | None = None

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.shape[1] != len(self.labels):
            raise ValueError(f"values must be (r, {len(self.labels)}), got {self.values.shape}")
        self.values.setflags(write=False)
        if self.known is not None:
            if self.known.shape != self.values.shape[:1]:
                raise ValueError(f"known must be ({len(self.values)},), got {self.known.shape}")
            self.known.setflags(write=False)

    @property
    def closeness(self) -> FloatArray:
        """float32 (r,) in [0, 1]: `known`, or the sum of the values."""
        if self.known is not None:
            return self.known
        total = self.values.sum(axis=1, dtype=np.float64).clip(0, 1)  # rounding may carry it past 1
        return np.asarray(total, np.float32)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision for one region.

    Attributes:
        status: "known", "uncertain" (best guess, not confident) or "unknown".
        label: the decided label, also when uncertain; None when unknown.
        score: in [0, 1]: evidence for `label` (1 - closeness where it says unknown), or the
            reranker's probability of its choice.
        decided_by: name of the step that made this decision.
        reason: one sentence with the numbers that decided.
        degraded: why a stage that should have taken part could not; None when all did.
        route: where the policy sent the region: to its answer, or to a reranker, or to a person.
        candidates: with a calibration the labels that remain possible, best first, UNKNOWN among them where
            it does; empty without one.
        p_value: with a calibration the share of known images that look at most as known, in (0, 1].
        rerank_skipped: why a reranker was not asked about an uncertain region; None where it was, or there
            is none.
        certainty: of an uncertain region, how sure retrieval is of its answer among what is possible, in
            (0, 1]; set where a reranker might be asked.
    """

    status: Status
    label: str | None
    score: float
    decided_by: str
    reason: str
    degraded: str | None = None
    route: Route | None = None
    candidates: tuple[str, ...] = ()
    p_value: float | None = None
    rerank_skipped: str | None = None
    certainty: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """What a vision-language model made of the options it was shown.

    Attributes:
        options: labels in the order presented; may include UNKNOWN.
        log_likelihoods: float32 (len(options),), natural logarithm of how likely each label is given image
            and prompt, up to a constant; at most 0.
    """

    options: tuple[str, ...]
    log_likelihoods: FloatArray

    def __post_init__(self) -> None:
        if self.log_likelihoods.shape != (len(self.options),):
            raise ValueError(
                f"log_likelihoods must be ({len(self.options)},), got {self.log_likelihoods.shape}"
            )
        self.log_likelihoods.setflags(write=False)

    @property
    def probabilities(self) -> dict[str, float]:
        """Probability of each option among the options; they sum to 1."""
        weights = np.exp(self.log_likelihoods.astype(np.float64) - self.log_likelihoods.max())
        return dict(zip(self.options, (weights / weights.sum()).tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class LabelScore:
    """What a classifier says about one of its classes.

    Attributes:
        label: the first name of the class.
        score: probability in [0, 1].
        synonyms: its other names, as in "tench, Tinca tinca": they share the one score.
    """

    label: str
    score: float
    synonyms: tuple[str, ...] = ()


MembershipCode = Literal[
    "no_person", "no_face", "bad_classifier_file", "encoder_mismatch", "model_unavailable", "unusable"
]


@dataclass(frozen=True, slots=True)
class Membership:
    """Whether a photo belongs to one collection.

    Attributes:
        collection, name: which.
        status: "success"; "skipped": the photo lacks what the collection is about; "error": its classifier
            cannot be used.
        is_in_collection: the answer; None without one, also where the probability lies in the band in which
            the classifier abstains.
        probability: calibrated, in [0, 1].
        threshold: the probability from which a photo belongs.
        region: what the collection is about.
        box: what was looked at, (x0, y0, x1, y1) px.
        fallback: why that is the whole image although another region was wanted; None where it is as wanted.
        code, reason: of what is no success, for programs and for people.
    """

    collection: str
    name: str
    status: Literal["success", "skipped", "error"]
    is_in_collection: bool | None = None
    probability: float | None = None
    threshold: float | None = None
    region: str | None = None
    box: Box | None = None
    fallback: str | None = None
    code: MembershipCode | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Sample:
    """One image on its way through the pipeline: one optional field per step.

    Attributes:
        sample_id: unique within a run; a path for files.
        image: upright RGB.
        truth: the right label, where it is known.
        sha256: of the file's bytes, where it was read from one.
        regions: all regions that were proposed, the whole image first.
        target: the one region to look at; None looks at all of them. The r of the fields below is the
            number of regions looked at.
        skipped: why no further step looks at this sample; None while they do.
        embeddings: encoder fingerprint -> float32 (r, d), unit rows; fingerprint and "-raw" -> as the model
            gives them.
        labelings: per region looked at, what `label` or `zero_shot` found, best first.
        captions: per region looked at, one sentence or more.
        memberships: what `classify` found, one per collection.
        neighbours, scores, verdicts, choices: set by retrieve, vote (and text_prior), open_set and rerank.
        timings: step name -> seconds this sample took (its share of the batch); kept by the pipeline.
        arrived: `time.monotonic` when it came in; deadlines count from it.
    """

    sample_id: str
    image: Image.Image
    truth: str | None = None
    sha256: str | None = None
    regions: tuple[Region, ...]
    target: Target | None = None
    skipped: Skip | None = None
    embeddings: Mapping[str, FloatArray] = field(default_factory=lambda: MappingProxyType({}))
    neighbours: Neighbours | None = None
    scores: Scores | None = None
    verdicts: tuple[Verdict, ...] | None = None
    choices: tuple[Choice | None, ...] | None = None
    labelings: tuple[tuple[LabelScore, ...], ...] | None = None
    captions: tuple[str, ...] | None = None
    memberships: tuple[Membership, ...] | None = None
    timings: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    arrived: float = field(default_factory=time.monotonic)

    @classmethod
    def from_image(
        cls, sample_id: str, image: Image.Image, truth: str | None = None, sha256: str | None = None
    ) -> Sample:
        """Start a sample whose only region is the whole image."""
        regions = (Region((0, 0, *image.size)),)
        return cls(sample_id=sample_id, image=image, truth=truth, sha256=sha256, regions=regions)

    @property
    def n_looked_at(self) -> int:
        """Number of regions looked at."""
        return 1 if self.target is not None else len(self.regions)

    @property
    def view(self) -> Box:
        """The part that steps look for things in: the target's box, else the whole image."""
        return self.target.box if self.target is not None else (0, 0, *self.image.size)

    def crops(self) -> list[Image.Image]:
        """Pixels of each region looked at, in order; the whole image is not copied."""
        if self.target is not None:
            return [self.target.cut(self.image)]
        return [self.image if r.kind == "image" else self.image.crop(r.box) for r in self.regions]


def required(value: T | None) -> T:
    """Narrow a field that the step's `requires` guarantees; a bug in the step if it fails."""
    if value is None:
        raise AssertionError("a step read a field that it does not list in `requires`")
    return value


def read_only(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    """A view that cannot be written, over a copy that nobody else holds."""
    return MappingProxyType(dict(mapping))
