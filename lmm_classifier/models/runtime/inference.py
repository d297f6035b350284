"""The forward pass of a model of torch: as much at once as fits, and foreign errors in our words."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch

from lmm_classifier.errors import ModelError, ModelOutOfMemoryError
from lmm_classifier.models.runtime.pretrained import first_line
from lmm_classifier.types import FloatArray

T = TypeVar("T")
R = TypeVar("R")
log = logging.getLogger(__name__)

UNLIMITED = sys.maxsize
LARGEST_COMPILED = 64
"""Padded to powers of two, 7 shapes; torch compiles 8 of a function, and runs more uncompiled."""

# Only CUDA has a class for it; these are of c10/core/impl/alloc_cpu.cpp (Linux, Windows) and of Apple's.
_COMPILER = ("torch._dynamo", "torch._inductor")  # where its errors are defined; importing it takes seconds
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


@contextmanager
def running(weights: str, what: str) -> Iterator[None]:
    """Inference without gradients; what torch or a processor raises becomes an error of ours.

    Raises:
        ModelOutOfMemoryError: there is not memory enough.
        ModelError: anything else.
    """
    try:
        with torch.inference_mode():
            yield
    except (RuntimeError, ValueError, MemoryError) as error:
        if is_out_of_memory(error):
            raise ModelOutOfMemoryError(
                f"{weights!r} needs more memory than there is for {what}: use a smaller batch or model, or "
                f"dtype bfloat16 ({first_line(error)})"
            ) from error
        if type(error).__module__.startswith(_COMPILER):
            raise ModelError(
                f"{weights!r} cannot be compiled here; leave `compile` out ({first_line(error)})"
            ) from error
        raise ModelError(f"{weights!r} failed on {what}: {first_line(error)}") from error


class Batches:
    """Takes items through a model, as many at once as fit into memory, and remembers how many that are.

    Threads may share it: at worst, what one has learned another learns again.

    Args:
        weights: for messages.
        what: for messages: the items, in the plural.
        largest: at most this many at once, though more may fit.
    """

    def __init__(self, weights: str, what: str, largest: int = UNLIMITED) -> None:
        self._weights, self._what = weights, what
        self._largest = largest

    def unit_rows(self, items: Sequence[T], features: Callable[[Sequence[T]], torch.Tensor]) -> FloatArray:
        """The features (n, d) of at least one item as unit rows, in order; raises as `parts`."""
        return np.concatenate(self.parts(items, lambda part: unit_rows(features(part))))

    def raw_rows(self, items: Sequence[T], features: Callable[[Sequence[T]], torch.Tensor]) -> FloatArray:
        """The features (n, d) as they are, float32, in order; raises as `parts`."""
        return np.concatenate(self.parts(items, lambda part: features(part).float().cpu().numpy()))

    def parts(self, items: Sequence[T], answers: Callable[[Sequence[T]], R]) -> list[R]:
        """The answers about one part of the items after the other, in order.

        Raises:
            ModelOutOfMemoryError: a single item does not fit.
            ModelError: the model failed.
        """
        answered: list[R] = []
        start, refused = 0, 0
        while start < len(items):
            part = items[start : start + self._largest]
            try:
                with running(self._weights, f"{len(part)} {self._what}"):
                    answered.append(answers(part))
                start += len(part)
            except ModelOutOfMemoryError:  # to try again in here would keep what filled the memory
                if len(part) == 1:
                    raise
                refused = refused or len(part)
                self._largest = min(self._largest, (len(part) + 1) // 2)
        if refused:
            log.warning(
                "%r: %d %s at once need more memory than there is; from now on it takes at most %d",
                self._weights,
                refused,
                self._what,
                self._largest,
            )
        return answered


def unit_rows(features: torch.Tensor) -> FloatArray:
    """Features (n, d) of any float type as float32 rows of L2 norm 1."""
    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    return np.asarray(unit.cpu().numpy(), dtype=np.float32)


def padded(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Inputs of n >= 1 photos with the last one repeated up to the next power of two."""
    n = len(next(iter(inputs.values())))
    fill = (1 << (n - 1).bit_length()) - n
    return {name: torch.cat([rows, *[rows[-1:]] * fill]) for name, rows in inputs.items()}


def is_out_of_memory(error: Exception) -> bool:
    """Whether this is how torch or Python says that there is not memory enough."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _OUT_OF_MEMORY)
