"""calibration.json: thresholds fitted on held-out images, kept beside the index they were fitted for."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config

from lmm_classifier.errors import IndexFolderError
from lmm_classifier.index.files import replace_file
from lmm_classifier.index.manifest import read_manifest
from lmm_classifier.index.sealed import seal, unseal

CALIBRATION = "calibration.json"
SCHEMA_VERSION = 2  # 1 had no digest of its own
REMEDY = "delete it or calibrate again"
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True)
class Calibration:
    """Thresholds, and everything that makes them valid.

    Attributes:
        confidence_threshold, open_set_threshold: on the scale of `Scores.values`.
        keep_known: share of known images that `open_set_threshold` was fitted to keep.
        precision: share of right answers that `confidence_threshold` was fitted for.
        second_look: share of known images that `confidence_threshold` was allowed to call uncertain.
        k, temperature, min_delta: settings of retrieval and vote they were fitted under.
        text_weight: of the text prior they were fitted with; 0 without one.
        text_temperature: of that prior; None without one.
        n_images: held-out images they were fitted on.
        index_digest: state of the index they were fitted for.
        created: UTC time, ISO 8601.
        schema_version: version of this file.
    """

    confidence_threshold: Share
    open_set_threshold: Share
    keep_known: Share
    precision: Share
    second_look: Share
    k: int
    temperature: float
    min_delta: float
    n_images: int
    index_digest: str
    created: str
    schema_version: int = SCHEMA_VERSION
    text_weight: float = 0.0
    text_temperature: float | None = None


def write_calibration(folder: Path, calibration: Calibration) -> None:
    """Store a calibration with its index, atomically."""
    replace_file(folder / CALIBRATION, seal(asdict(calibration)))


def carry_calibration(old: Path, new: Path) -> bool:
    """Copy the calibration of an index to its successor, if that is the same state of the index.

    Returns:
        False if there is one that does not fit any more and is left behind.
    """
    try:
        calibration = _read(old / CALIBRATION)
    except IndexFolderError:
        return False
    if calibration is None:
        return True
    fits = calibration.index_digest == read_manifest(new).digest
    if fits:
        write_calibration(new, calibration)
    return fits


def read_calibration(folder: Path) -> Calibration | None:
    """The calibration of an index folder; None where it was never calibrated.

    Raises:
        IndexFolderError: damaged, or fitted for another state of the index.
    """
    calibration = _read(folder / CALIBRATION)
    if calibration and calibration.index_digest != read_manifest(folder).digest:
        raise IndexFolderError(f"{folder / CALIBRATION} was fitted for another state of this index; {REMEDY}")
    return calibration


def _read(path: Path) -> Calibration | None:
    try:
        return TypeAdapter(Calibration).validate_python(unseal(path, SCHEMA_VERSION, REMEDY))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise IndexFolderError(f"{path} is not a calibration; {REMEDY}") from error
