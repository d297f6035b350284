"""What people said of the photos of a run: a log per reviewer, appended, never rewritten.

runs/NAME/decisions/REVIEWER.jsonl has a line per key press. It is on the disk before the press is answered,
so a crash between two presses loses nothing. What a crash cut off was never answered: it is marked by the
next line that is written, and reported.
"""

from __future__ import annotations

import json
import os
import unicodedata
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import quote, unquote

import pydantic
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from lmm_classifier.errors import ConfigError, RunError
from lmm_classifier.storage.atomic_files import sync_folder
from lmm_classifier.storage.locks import locked
from lmm_classifier.text import plain_line
from lmm_classifier.types import UNKNOWN

DECISIONS = "decisions"
SUFFIX = ".jsonl"
_LONGEST_NAME = 200  # bytes of a log's name without its suffix; a file system takes 255, our lock's has more
_LONGEST_LABEL = 200  # bytes of UTF-8; a label becomes the name of a folder
_CUT_OFF = b"\x18\n"
"""Ends a line that a crash cut off. ASCII's CANCEL says that what stands before it is to be ignored."""
_PATIENCE_S = 10.0  # for another process of the same reviewer, which needs milliseconds
_REMEDY = "put the line back as it was, or move the file elsewhere"

_Action = Literal["accept", "relabel", "new", "reject", "skip", "undo"]
LABELLING = frozenset({"accept", "relabel", "new"})
Number = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Photo = tuple[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]]
"""What a photo is known by: its path as the run's column `path` has it, and the SHA-256 of its bytes."""


@pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Annotation:
    """A key press.

    Attributes:
        id: of the press; who sends one again with the same id has said it once.
        time: ISO 8601 with milliseconds, UTC.
        reviewer: who pressed.
        action: `accept` the suggestion, `relabel` to another known label, give a `new` one, `reject` the
            photo as not wanted, `skip` it, or `undo` an earlier decision of one's own.
        photos: what it is about: one, or those of a group; none for `undo`.
        label: given; None unless the action gives one.
        group: id of the proposal that was decided as a whole; else None.
        undoes: id of the decision that is taken back; None unless the action is `undo`.
    """

    id: Number
    time: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00$")]
    reviewer: Annotated[str, Field(min_length=1)]
    action: _Action
    photos: tuple[Photo, ...]
    label: Annotated[str, Field(min_length=1)] | None
    group: str | None
    undoes: Number | None

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if (self.label is not None) != (self.action in LABELLING):
            raise ValueError(f"`{self.action}` has {'a' if self.label is None else 'no'} label")
        if (self.undoes is not None) != (self.action == "undo"):
            raise ValueError(
                f"`{self.action}` takes {'something' if self.undoes is None else 'nothing'} back"
            )
        if bool(self.photos) == (self.action == "undo"):
            raise ValueError(f"`{self.action}` is about {'no ' if self.photos else ''}photos")
        return self

    @property
    def answers(self) -> bool:
        """Whether it says what the photos are: a label, or that they are not wanted."""
        return self.action != "skip"


_DECISION = TypeAdapter(Annotation)


def _checked_reviewer(name: str) -> str:
    """A reviewer's name as it is kept.

    Raises:
        ConfigError: nothing of it can be seen, or it is too long for a file.
    """
    kept = unicodedata.normalize("NFC", plain_line(name))
    if not kept:
        raise ConfigError("a reviewer needs a name: give --reviewer")
    if len(_file_name(kept)) > _LONGEST_NAME:
        raise ConfigError("the reviewer's name is too long: give a shorter --reviewer")
    return kept


def checked_label(text: str) -> str:
    """A new label as it is kept.

    Raises:
        ConfigError: it is empty, too long, reserved, or can be no folder's name.
    """
    label = unicodedata.normalize("NFC", plain_line(text))
    if not label or len(label.encode()) > _LONGEST_LABEL:
        raise ConfigError(f"a label has 1 to {_LONGEST_LABEL} characters, fewer of some scripts")
    if label.casefold() == UNKNOWN:
        raise ConfigError(f"`{UNKNOWN}` is no label: it is said of photos that none fits")
    if label.startswith(".") or set(label) & set("/\\"):
        raise ConfigError("a label becomes a folder: it has no slash, and does not start with a dot")
    return label


def log_of(folder: Path, reviewer: str) -> AnnotationLog:
    """The log of a reviewer in the folder of a run, not read yet.

    Raises:
        ConfigError: this cannot be a reviewer's name.
    """
    return AnnotationLog(folder / DECISIONS / (_file_name(_checked_reviewer(reviewer)) + SUFFIX))


def _file_name(reviewer: str) -> str:
    """A name that leads nowhere else, that is not hidden, and that says whose the file is."""
    return quote(reviewer, safe=" ").replace(".", "%2E", reviewer.startswith("."))


class AnnotationLog:
    """The decisions of one reviewer, as far as they have been read.

    Attributes:
        path: of the file, which need not be there yet.
        reviewer: whose it is.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.reviewer = path, unquote(path.name.removesuffix(SUFFIX))
        self._bytes = self._lines = 0  # that have been read
        self._torn = False  # whether something follows them that is no whole line
        self._marked: list[int] = []
        self._all: dict[str, Annotation] = {}
        self.standing: dict[str, Annotation] = {}
        self._of_photo: dict[Photo, dict[str, Annotation]] = {}

    def __len__(self) -> int:
        """Key presses, those that were taken back and those that did so included."""
        return len(self._all)

    @property
    def cut_off(self) -> tuple[int, ...]:
        """Numbers of the lines that a crash cut off; nobody was told that they were stored."""
        return (*self._marked, *([self._lines + 1] if self._torn else []))

    def photos(self) -> Mapping[Photo, Annotation]:
        """What was last said of each photo, and not taken back."""
        return {photo: said[next(reversed(said))] for photo, said in self._of_photo.items()}

    def of(self, photo: Photo) -> Annotation | None:
        """What was last said of a photo, and not taken back."""
        said = self._of_photo.get(photo)
        return said[next(reversed(said))] if said else None

    def find(self, number: str) -> Annotation | None:
        """The decision of a key press, taken back or not."""
        return self._all.get(number)

    def read(self) -> None:
        """Take in what has been appended since.

        Raises:
            RunError: a line is none, or contradicts the others; or the file cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                if size < self._bytes:
                    raise RunError(f"{self.path} has lost its end since it was read; {_REMEDY}")
                file.seek(self._bytes)
                *lines, rest = file.read().split(b"\n")
        except FileNotFoundError as error:
            if self._bytes:
                raise RunError(f"{self.path} is gone; put it back") from error
            return
        except OSError as error:
            raise RunError(f"{self.path}: {error.strerror}; check the disk and the permissions") from error
        for line in lines:
            self._take(line)
            self._bytes, self._lines = self._bytes + len(line) + 1, self._lines + 1
        self._torn = bool(rest)

    def say(
        self,
        action: _Action,
        photos: Sequence[Photo],
        label: str | None = None,
        group: str | None = None,
        number: str | None = None,
    ) -> Annotation:
        """Note a decision; when this returns, it is on the disk.

        Args:
            action: not `undo`.
            photos: at least one.
            label: for an action that gives one.
            group: that was decided as a whole.
            number: id of the key press; if it is in the log already, nothing is written.

        Returns:
            the decision as it stands in the log.

        Raises:
            RunError: it could not be written, or the log is damaged or in use.
        """
        made = self._made(number, action, tuple(photos), label, group)
        with self._alone():
            return self._all.get(made.id) or self._append(made)

    def undo(self, number: str | None = None) -> Annotation | None:
        """Take back the last decision that is not taken back yet.

        Args:
            number: as for `say`.

        Returns:
            the decision that no longer counts; None if there was none.

        Raises:
            RunError: as `say`.
        """
        with self._alone():
            done = self._all.get(number or "")
            if done is None:
                if not self.standing:
                    return None
                last = next(reversed(self.standing))
                done = self._append(self._made(number, "undo", (), None, None, last))
            return self._all[done.undoes] if done.undoes else None

    def _made(
        self,
        number: str | None,
        action: _Action,
        photos: tuple[Photo, ...],
        label: str | None,
        group: str | None,
        undoes: str | None = None,
    ) -> Annotation:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        return Annotation(
            number or uuid.uuid4().hex, now, self.reviewer, action, photos, label, group, undoes
        )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process of the reviewer writes meanwhile, and what they wrote has been read."""
        in_use = RunError(f"{self.path} is in use by another process of {self.reviewer!r}")
        with locked(self.path.with_name(f".{self.path.name}.lock"), in_use, _PATIENCE_S):
            self.read()
            yield

    def _append(self, decision: Annotation) -> Annotation:
        line = json.dumps(asdict(decision)).encode() + b"\n"
        line = _CUT_OFF + line if self._torn else line
        is_new = not self._bytes
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            with closing(os.fdopen(descriptor, "wb", buffering=0)) as file:
                written = file.write(line)  # one call: another process's line comes before or after it
                os.fsync(descriptor)
            if is_new:
                sync_folder(self.path.parent)
        except OSError as error:
            raise RunError(f"cannot write {self.path}: {error.strerror}") from error
        if written != len(line):
            raise RunError(f"cannot write {self.path}: the disk took only a part of a line")
        self.read()
        return self._all[decision.id]

    def _take(self, line: bytes) -> None:
        number = self._lines + 1
        if line.endswith(_CUT_OFF[:-1]):
            self._marked.append(number)
            return
        try:
            decision = _DECISION.validate_json(line)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"])
            message = f"{where}: {problem['msg']}" if where else problem["msg"]
            raise self._damaged(number, f"is no decision ({message})") from error
        if decision.reviewer != self.reviewer:
            raise self._damaged(number, f"is by {decision.reviewer!r}, and the file by {self.reviewer!r}")
        if decision.id in self._all:
            raise self._damaged(number, "repeats the id of an earlier one")
        if decision.undoes is not None:
            undone = self.standing.pop(decision.undoes, None)
            if undone is None:
                raise self._damaged(number, "takes back what does not stand")
            self._forget(undone)
        else:
            self.standing[decision.id] = decision
            for photo in decision.photos:
                self._of_photo.setdefault(photo, {})[decision.id] = decision
        self._all[decision.id] = decision

    def _forget(self, undone: Annotation) -> None:
        for photo in set(undone.photos):
            said = self._of_photo[photo]
            del said[undone.id]
            if not said:
                del self._of_photo[photo]

    def _damaged(self, number: int, what: str) -> RunError:
        return RunError(f"{self.path}:{number} {what}; {_REMEDY}")
