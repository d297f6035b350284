"""calibration.json and its arrays: the decision fitted for an index, kept beside it.

The arrays lie in a file named after its content, which is written before the document that names it: a crash
leaves the old calibration or the new one.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config

from lmm_classifier.decision.decider import Decider
from lmm_classifier.decision.fusion import Fusion
from lmm_classifier.decision.gates import Gates
from lmm_classifier.decision.heads import HeadSettings
from lmm_classifier.decision.novelty import Combination
from lmm_classifier.decision.reference import Reference
from lmm_classifier.errors import IndexFolderError
from lmm_classifier.index.manifest import MANIFEST, read_manifest
from lmm_classifier.storage.atomic_files import FileRecord, explained, read_verified, replace_file
from lmm_classifier.storage.checksummed_json import dump_checksummed, load_checksummed

CALIBRATION = "calibration.json"
_ARRAYS = "calibration-{}.npz"
SCHEMA_VERSION = 4  # 3 knew no prior of places; 2 knew two thresholds on the evidence of the vote
_NOT_WRITTEN = FileRecord("", 0, 0)
_REMEDY = "delete it or calibrate again"
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class RerankTrial:
    """What asking a reranker about uncertain photos of the index came to.

    Attributes:
        fusion: how its opinion and that of retrieval are weighed.
        helps: whether it corrects surely more answers than it spoils, with as many unknowns as knowns among
            the cases where there are enough, and does not surely harm knowns alone; if not, it is not asked.
        not_for: labels of retrieval's answer that it is not asked about, since it spoils more of them.
        cases: photos it was asked about, half of them as unknown where there were enough.
        corrections, regressions: of these, answers made right, and made wrong, by a fusion whose weights
            were not fitted on them.
        asked: identity of the reranker and of the way it is asked.
        ask_below: certainty of retrieval from which asking was no longer worth it; 1 asks about all cases.
        prior: number of options -> log-probability that the model gives each place in a list, whatever
            stands there.
        flip_rate: share of the cases looked at in which reversing the list changed the answer; None where
            there is no list, or none was looked at.
        curve: (share of the cases asked, most doubtful first; share of all cases answered right).
    """

    fusion: Fusion
    helps: bool
    not_for: tuple[str, ...]
    cases: int
    corrections: int
    regressions: int
    asked: str
    ask_below: float = 1.0
    prior: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    flip_rate: float | None = None
    curve: tuple[tuple[float, float], ...] = ()


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True)
class Calibration:
    """What was chosen and fitted, and everything that makes it valid.

    Attributes:
        gates: the cuts.
        head: how the label is decided.
        novelty: how known an image looks.
        depth: neighbours looked at.
        labels: the closed list of labels it was fitted for; None means all of the index.
        text_weight: of the text prior it was fitted with; 0 without one.
        text_temperature: of that prior; None without one.
        target: in words, what was asked for.
        n_images: images of the index that were simulated, each as known and as unknown.
        n_held_out: images outside the index that the cuts were fitted on; 0: on the simulated ones.
        seed: of the simulation.
        heads: head -> accuracy, macro accuracy and log loss on the simulated images.
        auroc: novelty score -> AUROC between images simulated as known and as unknown.
        expected: route -> share of known images that would take it.
        expected_unknown: the same of unknown ones.
        encoders: fingerprints of the encoders whose vectors take part.
        index_digest: state of the index it was fitted for.
        created: UTC time, ISO 8601.
        rerank: what trying the reranker came to; None where it was not tried.
        arrays: the file of arrays.
        schema_version: version of this file.
    """

    gates: Gates
    head: HeadSettings
    novelty: Combination
    depth: int
    labels: tuple[str, ...] | None
    text_weight: float
    text_temperature: float | None
    target: str
    n_images: int
    n_held_out: int
    seed: int
    heads: Mapping[str, Mapping[str, float]]
    auroc: Mapping[str, float]
    expected: Mapping[str, Share]
    expected_unknown: Mapping[str, Share]
    encoders: tuple[str, ...]
    index_digest: str
    created: str
    rerank: RerankTrial | None = None
    arrays: FileRecord = _NOT_WRITTEN
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, slots=True, eq=False)
class StoredCalibration:
    """A calibration and the decision it stands for.

    Attributes:
        calibration: the document.
        decider: the decision.
        held_out: SHA-256 of the files outside the index that it was fitted on.
    """

    calibration: Calibration
    decider: Decider
    held_out: frozenset[str]


def write_calibration(
    folder: Path, calibration: Calibration, decider: Decider, held_out: Collection[str]
) -> Calibration:
    """Store a calibration with its index, atomically; returns it as it was written."""
    buffer = io.BytesIO()
    digests = np.asarray(sorted(held_out), "S64")
    np.savez(buffer, allow_pickle=False, held_out=digests, **_arrays(decider))
    return _publish(folder, calibration, buffer.getvalue())


def carry_calibration(old: Path, new: Path) -> bool:
    """Copy the calibration of an index to its successor, if that is the same state of the index.

    Returns:
        False if there is one that does not fit any more and is left behind.
    """
    try:
        calibration = _read(old / CALIBRATION)
        if calibration is None:
            return True
        fits = calibration.index_digest == read_manifest(new).digest
        if fits:
            _publish(new, calibration, read_verified(old, _name(calibration.arrays), calibration.arrays))
    except IndexFolderError:
        return False
    return fits


def read_calibration(folder: Path) -> StoredCalibration | None:
    """The calibration of an index folder; None where it was never calibrated.

    It is kept, and read anew when it or the index's manifest has been replaced on disk.

    Raises:
        IndexFolderError: damaged, or fitted for another state of the index.
    """
    states = [_state_of(folder / name) for name in (CALIBRATION, MANIFEST)]
    return None if states[0] is None else _read_fitted(folder, *states)


def _state_of(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise IndexFolderError(f"{path}: {error.strerror}") from error
    return status.st_ino, status.st_mtime_ns


@lru_cache(maxsize=4)
def _read_fitted(folder: Path, *_states: tuple[int, int] | None) -> StoredCalibration | None:
    calibration = _read(folder / CALIBRATION)
    if calibration is None:
        return None
    if calibration.index_digest != read_manifest(folder).digest:
        raise IndexFolderError(
            f"{folder / CALIBRATION} was fitted for another state of this index; {_REMEDY}"
        )
    content = read_verified(folder, _name(calibration.arrays), calibration.arrays)
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        held_out = frozenset(digest.decode() for digest in stored["held_out"].tolist())
        return StoredCalibration(calibration, _decider(calibration, stored), held_out)


def _publish(folder: Path, calibration: Calibration, arrays: bytes) -> Calibration:
    record = FileRecord(hashlib.sha256(arrays).hexdigest(), len(arrays), 0)
    replace_file(folder / _name(record), arrays)
    written = replace(calibration, arrays=record)
    replace_file(folder / CALIBRATION, dump_checksummed(asdict(written)))
    with explained(folder):
        for other in folder.glob(_ARRAYS.format("*")):
            if other.name != _name(record):
                other.unlink()
    return written


def _name(arrays: FileRecord) -> str:
    return _ARRAYS.format(arrays.sha256[:16])


def _arrays(decider: Decider) -> dict[str, Any]:
    stored: dict[str, Any] = {"calibrated": decider.calibrated}
    for number, reference in enumerate(decider.references):
        stored |= {f"{name}.{number}": values for name, values in reference.arrays().items()}
    return stored


def _decider(calibration: Calibration, stored: Mapping[str, Any]) -> Decider:
    references = tuple(
        Reference(**{name: stored[f"{name}.{number}"] for name in Reference.__slots__})
        for number in range(len(calibration.encoders))
    )
    return Decider(references, calibration.head, calibration.depth, calibration.novelty, stored["calibrated"])


def _read(path: Path) -> Calibration | None:
    try:
        return _checker().validate_python(load_checksummed(path, SCHEMA_VERSION, _REMEDY))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise IndexFolderError(f"{path} is not a calibration; {_REMEDY}") from error


@cache
def _checker() -> TypeAdapter[Calibration]:
    return TypeAdapter(Calibration)
