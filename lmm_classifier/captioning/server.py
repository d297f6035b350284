"""Captions by a running service: the one that `lmm-classifier serve` starts, or any with its interface."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel, ValidationError

from lmm_classifier.captioning.source import CaptionFailure, Keep, Outcome
from lmm_classifier.corpus.images import read_image_bytes, type_of_image
from lmm_classifier.errors import CaptionError, ConfigError, FetchError, ImageError
from lmm_classifier.fetch import FetchLimits, FormFile, bearer, check_url, fetch, form_data, post
from lmm_classifier.storage.prefetch import prefetch_map
from lmm_classifier.text import shown

KEY = "LMM_CLASSIFIER_API_KEY"
_MOST_OF_A_KEY = 4096  # bytes that are read of its file
_TASK = "caption"
LIMITS = FetchLimits(silence_s=60.0, total_s=300.0, max_bytes=2**18, patient=True)
"""Of one photo. No byte comes while the model is at it, so the silence is longer than for files; and one that
a busy service sends away waits for its turn."""
_AWAY = frozenset({"unreachable", "timeout"})
_ABOUT_THE_PHOTO = frozenset({400, 413, 415, 422})
_HOPELESS: dict[int | str, str] = {  # for all photos alike: status or code -> what to do
    "unreachable": "does the service run?",
    "timeout": "does the service run?",
    "redirected": "give the address that it leads to",
    "bad_url": "give the address as http://host:port",
    401: "give the key of the service with --key-file",
    403: "give the key of the service with --key-file",
    404: "is it the address of the service?",
    405: "is it the address of the service?",
}
_USELESS_CODES = frozenset({"unknown_operation", "model_unavailable"})
"""Of a task that fails: codes that do not depend on the photo."""


class _Result(BaseModel):
    """What became of a task."""

    status: str
    data: Any = None
    error_message: str | None = None
    error_code: str | None = None


class _Answer(BaseModel):
    """What became of all tasks, by their ids."""

    results: dict[str, _Result]


class _Refusal(BaseModel):
    """Why a whole request fails."""

    detail: str


@dataclass(frozen=True, slots=True)
class Server:
    """Asks a service, several photos at a time.

    Attributes:
        url: what "/analyze_image_upload/" is appended to.
        key: for its Authorization header; "" sends none.
        max_length: at most so many new tokens.
        at_once: requests at a time.
        limits: of each photo, with all tries and waits.
    """

    url: str
    key: str = field(default="", repr=False)
    max_length: int = 50
    at_once: int = 4
    limits: FetchLimits = LIMITS

    def check(self) -> None:
        """Whether anything answers at the address.

        Raises:
            FetchError: nothing does, or it is none.
            ConfigError: the key is none that a request can carry.
        """
        bearer(self.key, "the key")
        check_url(self._root)
        if "?" in self.url:
            raise FetchError("bad_url", f"{shown(self.url)!r}: the address must not hold a query")
        try:
            fetch(f"{self._root}/health", limits=replace(self.limits, silence_s=10.0, total_s=10.0, tries=1))
        except FetchError as error:
            if error.code in _AWAY:
                self._give_up(error)

    def outcomes(self, photos: Sequence[Path], keep: Keep) -> Generator[Outcome, None, None]:
        stop = threading.Event()

        def outcome(photo: Path) -> Outcome:
            found = self._caption(photo, stop)
            return found if isinstance(found, CaptionFailure) else keep(photo, found)

        with closing(prefetch_map(outcome, photos, self.at_once, 2 * self.at_once, stop)) as done:
            yield from done

    @property
    def _root(self) -> str:
        return self.url.rstrip("/")

    def _caption(self, photo: Path, stop: threading.Event) -> str | CaptionFailure:
        try:
            content = read_image_bytes(photo)
            picture = FormFile(photo.name, type_of_image(content), content)
        except ImageError as error:
            return CaptionFailure(str(error), its_own=True)
        params = {"max_length": self.max_length}
        tasks = {"tasks": [{"operation_id": _TASK, "type": "describe_image", "params": params}]}
        body, kind = form_data({"tasks_json": json.dumps(tasks), "image_file": picture})
        url, headers = f"{self._root}/analyze_image_upload/", bearer(self.key, "the key")
        try:
            return self._read(post(url, body, kind, limits=self.limits, headers=headers, stop=stop))
        except FetchError as error:
            return self._refused(error)

    def _read(self, answer: bytes) -> str | CaptionFailure:
        """The caption in an answer.

        Raises:
            CaptionError: the service says that it cannot make any.
        """
        try:
            result = _Answer.model_validate_json(answer).results[_TASK]
        except (ValidationError, KeyError):
            return self._garbage(answer)
        if result.status != "success":
            reason = f"the service made no caption: {self._shown(result.error_message or result.status)}"
            if result.error_code in _USELESS_CODES:
                raise CaptionError(f"{reason} [{result.error_code}]")
            return CaptionFailure(reason)
        if result.data is None:
            return ""
        return result.data if isinstance(result.data, str) else self._garbage(answer)

    def _garbage(self, answer: bytes) -> CaptionFailure:
        said = self._shown(answer[:1000].decode("utf-8", "replace"))
        return CaptionFailure(f"the answer is not that of a service that describes images: {said!r}")

    def _refused(self, error: FetchError) -> CaptionFailure:
        """What is wrong with one photo, or with the service just now.

        Raises:
            FetchError: no photo would fare better.
        """
        if error.code in _AWAY:
            self.check()
        elif error.code in _HOPELESS or error.status in _HOPELESS:
            self._give_up(error)
        return CaptionFailure(self._told(error), its_own=error.status in _ABOUT_THE_PHOTO)

    def _give_up(self, error: FetchError) -> NoReturn:
        hint = _HOPELESS.get(error.status or error.code, "")
        raise FetchError(error.code, f"{self._told(error)}; {hint}", error.status) from error

    def _told(self, error: FetchError) -> str:
        """An error with what the service says of it."""
        try:
            said = _Refusal.model_validate_json(error.said).detail
        except ValidationError:
            said = error.said
        return error.message + (said and f": {self._shown(said)}")

    def _shown(self, said: str) -> str:
        """What the service says, without the key if it says that."""
        return shown(said.replace(self.key or "\0", "***"))


def read_key(file: Path) -> str:
    """The key that a file holds, without the white space around it.

    Raises:
        ConfigError: it cannot be read, or holds none.
    """
    try:
        with file.open("rb") as opened:
            key = opened.read(_MOST_OF_A_KEY).decode("utf-8", "replace").strip()
    except OSError as error:
        raise ConfigError(f"the key cannot be read from {file}: {error.strerror}") from error
    if not key:
        raise ConfigError(f"{file} holds no key: it is empty")
    return key
