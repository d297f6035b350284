"""Photos of a run that people, or the classifier alone, have given a label; each as it was then."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from lmm_classifier.corpus.corpus import CorpusItem, SkippedFile
from lmm_classifier.corpus.images import read_image_bytes
from lmm_classifier.errors import ImageError
from lmm_classifier.labelling.annotations import Annotations
from lmm_classifier.labelling.run_schema import path_of
from lmm_classifier.labelling.run_store import LabellingRun


@dataclass(frozen=True, slots=True)
class AgreedLabels:
    """What a corpus can be made of.

    Attributes:
        items: photos and labels; paths are absolute.
        sha256: digest of each.
        rejected: how many photos were reviewed and are not wanted.
        conflicts: one line each: photos that reviewers give different answers, or copies of one photo that
            got different labels.
        gone: photos with a label that are not there any more, or not the same.
    """

    items: tuple[CorpusItem, ...]
    sha256: tuple[str, ...]
    rejected: int
    conflicts: tuple[str, ...]
    gone: tuple[SkippedFile, ...]


def accepted_photos(run: LabellingRun, *, unreviewed: bool = False) -> AgreedLabels:
    """The photos that all who reviewed them give one label.

    Args:
        run: the run.
        unreviewed: also those that nobody reviewed and the classifier is sure of (status "known").

    Raises:
        RunError: a shard or a log of decisions is damaged.
    """
    verdicts = Annotations(run.folder)
    verdicts.read()
    settled, conflicts = verdicts.settled(), verdicts.conflicts()
    items, digests, gone, rejected = [], [], [], 0
    for found in run.columns("path", "path_bytes", "sha256", "label", "status").to_pylist():
        photo = found["path"], found["sha256"]
        decision = settled.get(photo)
        label = decision.label if decision else None
        rejected += decision is not None and label is None
        if decision is None and unreviewed and photo not in conflicts and found["status"] == "known":
            label = found["label"]
        if label is None:
            continue
        path = run.root / path_of(found)
        if problem := _changed(path, found["sha256"]):
            gone.append(problem)
            continue
        items.append(CorpusItem(str(path), run.manifest.label_of(label)))
        digests.append(found["sha256"])
    pairs = list(zip(items, digests, strict=True))
    labels_of: dict[str, set[str]] = {}
    for item, sha256 in pairs:
        labels_of.setdefault(sha256, set()).add(item.label)
    kept = [(item, sha256) for item, sha256 in pairs if len(labels_of[sha256]) == 1]
    copies = [
        f"{item.path}: {item.label}, and a copy of it another label"
        for item, sha256 in pairs
        if len(labels_of[sha256]) > 1
    ]
    told = tuple(
        f"{path}: {', '.join(f'{who} says {said.label or said.action}' for who, said in sorted(by.items()))}"
        for (path, _), by in sorted(conflicts.items())
    )
    return AgreedLabels(
        tuple(item for item, _ in kept), tuple(d for _, d in kept), rejected, (*told, *copies), tuple(gone)
    )


def _changed(path: Path, sha256: str) -> SkippedFile | None:
    """Why a photo is not the one that got the label; None where it is."""
    try:
        content = read_image_bytes(path)
    except ImageError as error:
        return SkippedFile(str(path), error.code, error.reason)
    if hashlib.sha256(content).hexdigest() != sha256:
        return SkippedFile(str(path), "not_found", "its bytes have changed since it was labelled")
    return None
