"""Which photos to ask about, and what the right answers are; refuses sets that would measure nothing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lmm_classifier.api.hybrid_classifier import HybridClassifier
from lmm_classifier.corpus.corpus import Corpus, CorpusItem
from lmm_classifier.corpus.folder import list_images
from lmm_classifier.corpus.images import read_image_bytes
from lmm_classifier.corpus.source import read_corpus
from lmm_classifier.errors import ConfigError, CorpusError, ImageError
from lmm_classifier.evaluation.query import Group
from lmm_classifier.index.calibration import read_calibration
from lmm_classifier.index.search import open_index
from lmm_classifier.steps.retrieve import Retrieve
from lmm_classifier.steps.text_prior import TextPrior
from lmm_classifier.steps.vote import Vote
from lmm_classifier.storage.progress import OnProgress, Progress
from lmm_classifier.types import UNKNOWN

_NAMED = 3  # labels or photos named in a message
Unknowns = Literal["near", "far"]


@dataclass(frozen=True, slots=True)
class EvaluationItem:
    """A photo to ask about: its file, the label its corpus gives it ("" for none), and its group."""

    photo: Path
    label: str
    group: Group


def read_unknowns(source: str | os.PathLike[str]) -> Corpus:
    """Read photos of no label of the index: a folder, with or without a folder per label, or a table.

    A photo beside the label folders, or in a folder without any, gets the label "unknown".

    Raises:
        CorpusError: as `read_corpus`.
    """
    root = Path(source)
    if not root.is_dir():
        return read_corpus(root)
    paths, skipped = list_images(root)
    if not paths:
        raise CorpusError(f"{root}: no image in it ({len(skipped)} other entries); put images into it")
    items = tuple(CorpusItem(p, p.partition("/")[0] if "/" in p else UNKNOWN) for p in paths)
    return Corpus(items, skipped, empty_labels=(), root=root)


def answerable_labels(classifier: HybridClassifier) -> frozenset[str]:
    """The labels that can be answered: with photos in the index or a text prior, and not excluded."""
    labels: set[str] = set()
    for step in classifier.pipeline.steps:
        if isinstance(step, Retrieve):
            indexed = set(open_index(step.index).labels)
            labels |= indexed if step.labels is None else indexed & set(step.labels)
        elif isinstance(step, TextPrior) and step.weight:
            labels |= set(open_index(step.index).labels if step.labels is None else step.labels)
    return frozenset(labels)


def evaluation_items(
    labels: frozenset[str], known: Corpus, unknown: Mapping[Unknowns, Corpus], out_of_index: Unknowns
) -> list[EvaluationItem]:
    """All photos of all sets with their groups: those of `known` in order, then each set of unknowns.

    Args:
        labels: those that can be answered.
        known: labelled photos; one whose label cannot be answered belongs to `out_of_index`.
        unknown: photos of no label of the index.
        out_of_index: the group of those of `known`.

    Raises:
        ConfigError: "unknown" is one of the labels.
        CorpusError: no photo has a label that can be answered, or a photo of an unknown set has.
    """
    if UNKNOWN in labels:
        raise ConfigError(
            f"the index has a label named {UNKNOWN!r}, which is the right answer for photos of no label of "
            "it; rename the label to evaluate"
        )
    asked = [
        EvaluationItem(known.root / item.path, item.label, "known" if item.label in labels else out_of_index)
        for item in known.items
    ]
    if all(question.group != "known" for question in asked):
        raise CorpusError(
            f"{known.root}: no photo has a label that the index can answer; its labels are "
            f"{_first(known.labels)}, those of the index {_first(sorted(labels))}"
        )
    for group, corpus in unknown.items():
        if overlap := sorted(labels & set(corpus.labels)):
            raise CorpusError(
                f"{corpus.root}: an unknown set must show no label of the index, it shows {_first(overlap)}; "
                "take these photos out, or give them as knowns"
            )
        asked += [
            EvaluationItem(corpus.root / i.path, "" if i.label == UNKNOWN else i.label, group)
            for i in corpus.items
        ]
    return asked


def refuse_seen(
    classifier: HybridClassifier, asked: Sequence[EvaluationItem], on_progress: OnProgress
) -> None:
    """Check that no photo is in the index, was calibrated on, or is in two groups, byte for byte.

    A photo that cannot be read is passed over: classifying it says why.

    Raises:
        CorpusError: one is; the message names the first.
    """
    retrieving = [step for step in classifier.pipeline.steps if isinstance(step, Retrieve)]
    records = [open_index(step.index).records for step in retrieving]
    indexed = {digest: path for r in records for digest, path in zip(r.sha256(), r.paths(), strict=True)}
    calibrated = _calibrated_on(classifier)
    seen: dict[str, EvaluationItem] = {}
    copies = []
    for done, question in enumerate(asked, start=1):
        on_progress(Progress("looking for photos of the index", done, len(asked)))
        try:
            content = read_image_bytes(question.photo, classifier.limits)
        except ImageError:
            continue
        digest = hashlib.sha256(content).hexdigest()
        if digest in calibrated:
            raise CorpusError(
                f"{question.photo} is one of the held-out photos that the index was calibrated on; take "
                "photos it has not seen"
            )
        if digest in indexed:
            copies.append(f"{question.photo} (as {indexed[digest]})")
        first = seen.setdefault(digest, question)
        if first.group != question.group:
            raise CorpusError(
                f"{first.photo} ({first.group}) and {question.photo} ({question.group}) are the same file; "
                "a photo belongs to one group"
            )
    if copies:
        count = "1 photo is" if len(copies) == 1 else f"{len(copies)} photos are"
        raise CorpusError(
            f"{count} in the index too: {_first(copies, quoted=False)}; an evaluation on indexed photos "
            "measures nothing, so leave them out"
        )


def _calibrated_on(classifier: HybridClassifier) -> frozenset[str]:
    """Digests of the held-out photos behind the thresholds in force."""
    folders = {step.calibration for step in classifier.pipeline.steps if isinstance(step, Vote)} - {None}
    fitted = [read_calibration(folder) for folder in folders if folder is not None]
    return frozenset().union(*(each.held_out for each in fitted if each is not None))


def _first(names: Sequence[str], *, quoted: bool = True) -> str:
    shown = [repr(name) if quoted else name for name in names[:_NAMED]]
    more = [f"{len(names) - _NAMED} more"] if len(names) > _NAMED else []
    return ", ".join(shown + more)
