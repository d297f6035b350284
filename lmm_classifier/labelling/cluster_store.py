"""proposals.json: groups of a run's unknown photos that may deserve a label."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError

from lmm_classifier.captioning.source import CaptionFailure, CaptionSource
from lmm_classifier.errors import CaptionError, IndexFolderError, RunError
from lmm_classifier.labelling.clustering import SMALLEST, propose
from lmm_classifier.labelling.run_context import context_of_run, references_of
from lmm_classifier.labelling.run_store import LabellingRun
from lmm_classifier.storage.atomic_files import replace_file
from lmm_classifier.storage.checksummed_json import digest_of, dump_checksummed, load_checksummed
from lmm_classifier.types import UNKNOWN

PROPOSALS = "proposals.json"
_SCHEMA_VERSION = 1
_DIGITS = 12  # hex digits of a group's name


@dataclass(frozen=True, slots=True)
class Group:
    """Unknown photos that are alike.

    Attributes:
        id: the same for the same photos.
        members: numbers of the photos in the run, those nearest to the middle first.
        representatives: some of them, from the middle to the edge.
        cohesion: mean silhouette in [-1, 1]: 1 is a tight group far from all others.
        nearest: known labels and the cosine of the group's middle to their prototypes, highest first.
        captions: what a captioner says of the representatives; none where it was not asked.
    """

    id: str
    members: tuple[int, ...]
    representatives: tuple[int, ...]
    cohesion: float
    nearest: tuple[tuple[str, float], ...]
    captions: tuple[str, ...] = ()


_GROUPS = TypeAdapter(tuple[Group, ...])


def propose_groups(run: LabellingRun, smallest: int = SMALLEST) -> tuple[Group, ...]:
    """Group the photos that no label fits, by the vectors of the first encoder, the largest group first.

    Args:
        run: the run.
        smallest: photos of a group, at least.

    Raises:
        RunError: the run is damaged, or its index has other encoders by now.
        ConfigError, IndexFolderError: its index cannot be used.
    """
    context = context_of_run(run)
    columns = run.columns("label", "sha256").to_pydict()
    readable = run.readable()
    is_unknown = np.asarray([columns["label"][row] == UNKNOWN for row in readable], bool)
    rows = readable[is_unknown]
    vectors = run.vectors()[is_unknown]
    found = propose(vectors, references_of(context)[0], context.index.labels, smallest=smallest)
    return tuple(
        Group(
            _name([columns["sha256"][row] for row in rows[each.members]]),
            tuple(rows[each.members].tolist()),
            tuple(rows[each.representatives].tolist()),
            each.cohesion,
            each.nearest,
        )
        for each in found
    )


def captioned(run: LabellingRun, groups: Sequence[Group], source: CaptionSource) -> tuple[Group, ...]:
    """The groups, with what a captioner says of their representatives.

    Raises:
        CaptionError: one cannot be put into words.
        LmmClassifierError: none can.
    """
    source.check()
    return tuple(replace(group, captions=_captions(run, group, source)) for group in groups)


def write_groups(run: LabellingRun, groups: Sequence[Group]) -> Path:
    """Put proposals.json in the place of an older one; returns it.

    Raises:
        IndexFolderError: it cannot be written.
    """
    path = run.folder / PROPOSALS
    body = {"schema_version": _SCHEMA_VERSION, "photos": _photos(run), "groups": [asdict(g) for g in groups]}
    replace_file(path, dump_checksummed(body))
    return path


def read_groups(run: LabellingRun) -> tuple[Group, ...] | None:
    """What was proposed for a run; None where nothing was, or for what the run was before.

    Raises:
        RunError: the file is damaged.
    """
    try:
        body = load_checksummed(
            run.folder / PROPOSALS, _SCHEMA_VERSION, "propose again: `lmm-classifier label propose`"
        )
    except FileNotFoundError:
        return None
    except IndexFolderError as error:
        raise RunError(str(error)) from error
    if body.get("photos") != _photos(run):
        return None
    try:
        return _GROUPS.validate_python(body.get("groups"))
    except ValidationError as error:
        raise RunError(f"{run.folder / PROPOSALS} does not hold groups; propose again") from error


def _photos(run: LabellingRun) -> str:
    """Names what the numbers of photos stand for, and what was answered about them."""
    return digest_of(run.columns("sha256", "label").to_pydict())


def _name(digests: Sequence[str]) -> str:
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()[:_DIGITS]


def _captions(run: LabellingRun, group: Group, source: CaptionSource) -> tuple[str, ...]:
    said: dict[Path, str] = {}

    def keep(photo: Path, caption: str) -> None:
        said[photo] = caption

    photos = [run.root / run.row(row).path for row in group.representatives]
    for photo, outcome in zip(photos, source.outcomes(photos, keep), strict=True):
        if isinstance(outcome, CaptionFailure):
            raise CaptionError(f"{photo} has no caption: {outcome.reason}")
    return tuple(said[photo] for photo in photos)
