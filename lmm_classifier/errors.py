"""Every error this package raises on purpose.

    LmmClassifierError
    ├── ConfigError                the YAML file, a parameter or a name is wrong
    ├── CorpusError                the labelled images are wrong as a whole
    │   └── ImageError                 one image cannot be read; carries a code from IMAGE_ERROR_CODES
    ├── IndexFolderError           an index on disk is missing, damaged or inconsistent
    │   └── EncoderMismatchError       the index was built by another encoder
    ├── CollectionError            a collection classifier, its store or its training data is wrong
    │   ├── UnknownCollectionError     the store has none for this collection; also a FileNotFoundError
    │   └── ClassifierFileError        it is damaged, foreign or a pickle; also a ValueError
    ├── RunError                   a labelling run on disk cannot be used, or not for this
    ├── CaptionError               photos cannot be put into words, as things are
    ├── FetchError                 a URL cannot be fetched; carries a code, a FetchErrorCode
    ├── ModelError                 a model cannot be loaded or run
    │   ├── ModelUnavailableError      its weights are neither on this machine nor reachable
    │   ├── ModelOutOfMemoryError      it, or a pass through it, needs more memory than there is
    │   └── OutOfTimeError             nobody waits for its answer any more
    └── StepError                  a pipeline step broke its contract

Each message is one line that says what is wrong, where, and what to do about it.
"""

from __future__ import annotations

from typing import Literal, get_args

ImageErrorCode = Literal[
    "not_found",
    "not_a_file",
    "outside_root",
    "permission_denied",
    "io_error",
    "empty_file",
    "too_many_bytes",
    "unsupported_format",
    "too_many_pixels",
    "truncated",
    "corrupt",
    "unsupported_pixels",
    "out_of_memory",
]
IMAGE_ERROR_CODES: tuple[ImageErrorCode, ...] = get_args(ImageErrorCode)

FetchErrorCode = Literal[
    "bad_url",
    "unreachable",
    "timeout",
    "bad_status",
    "redirected",
    "too_large",
    "image_url_not_fetchable",  # a stranger's URL, whatever is wrong with it
]


class LmmClassifierError(Exception):
    """Base class: `except LmmClassifierError` catches everything deliberate."""


class ConfigError(LmmClassifierError):
    """The YAML file, a parameter or a name is wrong."""


class CorpusError(LmmClassifierError):
    """The labelled images are wrong as a whole."""


class ImageError(CorpusError):
    """One image cannot be read.

    Attributes:
        code: one of IMAGE_ERROR_CODES, for programs.
        reason: a short text for people, free of paths and memory addresses.
    """

    def __init__(self, code: ImageErrorCode, reason: str) -> None:
        super().__init__(code, reason)  # just these: pickle rebuilds an error from its args
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.reason} [{self.code}]"


class IndexFolderError(LmmClassifierError):
    """An index on disk is missing, damaged or inconsistent."""


class EncoderMismatchError(IndexFolderError):
    """The index was built by another encoder than the one in use."""


class CollectionError(LmmClassifierError):
    """A collection classifier, its store or its training data is wrong."""


class UnknownCollectionError(CollectionError, FileNotFoundError):
    """The store has no classifier for this collection."""


class ClassifierFileError(CollectionError, ValueError):
    """A stored classifier is damaged, contradicts itself, is foreign to this program or a pickle."""


class RunError(LmmClassifierError):
    """A labelling run on disk is missing or damaged, or was made of something else."""


class CaptionError(LmmClassifierError):
    """Photos cannot be put into words, as things are: the next one would fare no better."""


class FetchError(LmmClassifierError):
    """A URL cannot be fetched.

    Attributes:
        code: a FetchErrorCode, for programs.
        status: of the answer, where it is what is wrong.
        said: the beginning of such an answer to a POST, as a stranger wrote it: to be cleaned when shown.
    """

    def __init__(self, code: FetchErrorCode, message: str, status: int | None = None, said: str = "") -> None:
        super().__init__(code, message, status, said)
        self.code = code
        self.message = message
        self.status = status
        self.said = said

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]"


class ModelError(LmmClassifierError):
    """A model cannot be loaded or run."""


class ModelUnavailableError(ModelError):
    """The weights of a model are neither on this machine nor reachable."""


class ModelOutOfMemoryError(ModelError):
    """A model, or a pass through it however small its batch, needs more memory than there is."""


class OutOfTimeError(ModelError):
    """A model was stopped, for nobody waits for its answer any more."""


class StepError(LmmClassifierError):
    """A pipeline step broke its contract."""
