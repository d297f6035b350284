"""The log of p-values that `classify` keeps: a JSON object per photo, appended, never rewritten."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lmm_classifier.api.classification import Classification
from lmm_classifier.api.hybrid_classifier import HybridClassifier
from lmm_classifier.decision.gates import Gates
from lmm_classifier.errors import ConfigError
from lmm_classifier.index.calibration import StoredCalibration, read_calibration
from lmm_classifier.steps.open_set import OpenSet
from lmm_classifier.types import required

_DIGEST = 16  # hex digits that name a calibration, as in the name of its file of arrays


def calibration_of(classifier: HybridClassifier) -> StoredCalibration:
    """The calibration in force.

    Raises:
        ConfigError: none is, so there are no p-values.
    """
    if not isinstance(classifier.thresholds, Gates):
        raise ConfigError(
            "p-values need a calibrated index: run `lmm-classifier calibrate`, and leave both thresholds "
            "out of the settings"
        )
    [folder] = {step.calibration for step in classifier.steps_of(OpenSet)}
    return required(read_calibration(required(folder)))


def name_of(fitted: StoredCalibration) -> str:
    """What a line of the log calls its calibration: the same where the calibrated scores are."""
    return fitted.calibration.arrays.sha256[:_DIGEST]


@dataclass(frozen=True, slots=True)
class PValueLog:
    """An open log, and the name of the calibration in force."""

    descriptor: int
    calibration: str

    def note(self, answer: Classification) -> None:
        """Append a line. One write each: a crash may cut the last line and no other.

        Raises:
            OSError: the disk refuses.
        """
        if answer.p_value is None:
            raise AssertionError("a calibrated policy gives every answer a p-value")
        body = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "source": answer.source,
            "p_value": answer.p_value,
            "label": answer.label,
            "route": answer.route,
            "calibration": self.calibration,
        }
        os.write(self.descriptor, json.dumps(body).encode() + b"\n")


@contextmanager
def open_log(path: Path, classifier: HybridClassifier) -> Iterator[PValueLog]:
    """Open a log to append to, made if missing.

    Raises:
        ConfigError: the classifier has no calibration, or the file cannot be written.
    """
    name = name_of(calibration_of(classifier))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            os.write(descriptor, b"\n")  # the last line was cut off: the next one starts afresh
        yield PValueLog(descriptor, name)
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Logged:
    """What a log holds of one calibration.

    Attributes:
        p_values: in the order of the lines.
        others: lines of other calibrations.
        cut_off: numbers of the lines that a crash cut off.
    """

    p_values: tuple[float, ...]
    others: int
    cut_off: tuple[int, ...]


def read_log(path: Path, calibration: str) -> Logged:
    """Read the lines of a calibration.

    Raises:
        ConfigError: the file cannot be read, is no such log, or has no line of this calibration.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; `classify --p-values FILE` writes it") from error
    found: list[float] = []
    others, cut_off = 0, []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            body = json.loads(line)
        except (ValueError, RecursionError):
            cut_off.append(number)
            continue
        p_value, name = _checked(body, f"{path}:{number}")
        if name == calibration:
            found.append(p_value)
        else:
            others += 1
    if not found:
        held = f"{others} lines of other calibrations" if others else "no line that can be read"
        raise ConfigError(
            f"{path} has no p-value of the calibration in force ({calibration}), but {held}; photos must be "
            "classified with these settings"
        )
    return Logged(tuple(found), others, tuple(cut_off))


def _checked(body: Any, where: str) -> tuple[float, str]:
    p_value = body.get("p_value") if isinstance(body, dict) else None
    if not isinstance(p_value, float | int) or isinstance(p_value, bool) or not 0 < p_value <= 1:
        raise ConfigError(f"{where}: not a line of a p-value log: `p_value` must be a number in (0, 1]")
    return float(p_value), str(body.get("calibration"))
