"""What classifiers say of a photo: classes of a model, and collections it belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lmm_classifier.types.regions import Box


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
