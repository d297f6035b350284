"""Every error this package raises on purpose.

    LmmClassifierError
    ├── ConfigError                the YAML file, a parameter or a name is wrong
    ├── CorpusError                the labelled images are wrong as a whole
    │   └── ImageError                 one image cannot be read; carries a code from IMAGE_ERROR_CODES
    ├── IndexFolderError           an index on disk is missing, damaged or inconsistent
    │   └── EncoderMismatchError       the index was built by another encoder
    ├── ModelError                 a model cannot be loaded or run
    │   ├── ModelUnavailableError      its weights are neither on this machine nor reachable
    │   └── ModelOutOfMemoryError      a pass through it needs more memory than there is
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


class ModelError(LmmClassifierError):
    """A model cannot be loaded or run."""


class ModelUnavailableError(ModelError):
    """The weights of a model are neither on this machine nor reachable."""


class ModelOutOfMemoryError(ModelError):
    """A pass through a model needs more memory than there is; raised where a smaller batch is no way out."""


class StepError(LmmClassifierError):
    """A pipeline step broke its contract."""
