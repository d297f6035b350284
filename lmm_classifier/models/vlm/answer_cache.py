"""Asking a chooser: what it promises is checked, and answers may be remembered."""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from PIL import Image

from lmm_classifier.errors import ModelError
from lmm_classifier.models.base import Chooser, Question
from lmm_classifier.models.loading import answering, load_chooser
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.models.vlm.prompts import asked
from lmm_classifier.types import FloatArray

log = logging.getLogger(__name__)

_ASKED_AS = 2
"""Version of how a question is put, in words and (since 2) pixels; answers of another are not used."""
_WAIT_FOR_DISK_S = 5.0
# Readers and a writer do not wait for each other; a crash loses the last answers at most.
_SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS answers (question BLOB PRIMARY KEY, answer BLOB NOT NULL) WITHOUT ROWID;
"""


def rate(
    spec: ModelSpec, questions: Sequence[Question], batch_size: int, memory: Path | None = None
) -> list[FloatArray]:
    """Ask the chooser of this spec, and take from it only what its protocol promises.

    Args:
        spec: the chooser.
        questions: what it is asked.
        batch_size: as `Chooser` has it.
        memory: file in which answers are remembered; None remembers none.

    Returns:
        as `Chooser.log_likelihoods`.

    Raises:
        ModelError: it cannot be opened, failed, or gave anything but a finite number per option.
    """
    chooser = load_chooser(spec)
    if memory is None:
        return _checked(chooser, spec, questions, batch_size)
    keys = [_key(chooser, spec, question) for question in questions]
    known = _recalled(memory, keys, questions)
    new = [i for i, values in enumerate(known) if values is None]
    found = _checked(chooser, spec, [questions[i] for i in new], batch_size) if new else []
    _remember(memory, [(keys[i], values) for i, values in zip(new, found, strict=True)])
    answers = iter(found)
    return [next(answers) if values is None else values for values in known]


def _checked(
    chooser: Chooser, spec: ModelSpec, questions: Sequence[Question], batch_size: int
) -> list[FloatArray]:
    with answering("chooser", spec):
        rated = chooser.log_likelihoods(questions, batch_size)
    shapes = [np.shape(values) for values in rated]
    if shapes != [(len(q.options),) for q in questions] or not all(np.isfinite(v).all() for v in rated):
        raise ModelError(f"chooser {spec.family!r} must give one finite number per option, got {shapes}")
    return rated


def _key(chooser: Chooser, spec: ModelSpec, question: Question) -> bytes:
    """SHA-256 of everything the answer depends on: the model, every pixel and every word.

    What model a server has under a name is taken on trust.
    """
    model = getattr(chooser, "fingerprint", None) or _named(spec)
    said = [text for text, _ in question.exemplars]
    said.append(asked(question.prompt, question.options, question.form))
    digest = hashlib.sha256(json.dumps([_ASKED_AS, model, question.form, question.options, said]).encode())
    for image in (question.image, *(image for _, image in question.exemplars)):
        digest.update(_pixels(image))
    return digest.digest()


def _named(spec: ModelSpec) -> list[str]:
    return [spec.family, spec.weights, spec.revision, spec.dtype, *([spec.budget] if spec.budget else [])]


def _pixels(image: Image.Image) -> bytes:
    header = f"{image.mode} {image.size}".encode()
    return hashlib.sha256(header + np.ascontiguousarray(image).tobytes()).digest()


def _recalled(memory: Path, keys: Sequence[bytes], questions: Sequence[Question]) -> list[FloatArray | None]:
    """The remembered answers; None where there is none, or none that can be one."""
    try:
        with closing(_opened(memory)) as database:
            rows = [
                database.execute("SELECT answer FROM answers WHERE question = ?", (key,)).fetchone()
                for key in keys
            ]
    except (sqlite3.Error, OSError) as error:
        log.warning("%s cannot be read, so the model is asked anew: %s", memory, error)
        return [None] * len(keys)
    return [_answer(row, len(q.options)) for row, q in zip(rows, questions, strict=True)]


def _answer(row: tuple[object] | None, options: int) -> FloatArray | None:
    if row is None or not isinstance(row[0], bytes) or len(row[0]) != 4 * options:
        return None
    values = np.frombuffer(row[0], "<f4").astype(np.float32)
    return values if np.isfinite(values).all() else None


def _remember(memory: Path, answers: Sequence[tuple[bytes, FloatArray]]) -> None:
    try:
        with closing(_opened(memory)) as database, database:
            database.executemany(
                "INSERT OR REPLACE INTO answers VALUES (?, ?)",
                [(key, np.asarray(values, "<f4").tobytes()) for key, values in answers],
            )
    except (sqlite3.Error, OSError) as error:
        log.warning("%s cannot be written, so %d answers are not remembered: %s", memory, len(answers), error)


def _opened(memory: Path) -> sqlite3.Connection:
    memory.parent.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(memory, timeout=_WAIT_FOR_DISK_S)
    try:
        database.executescript(_SCHEMA)
    except sqlite3.Error:
        database.close()
        raise
    return database
