"""The one place that opens models: each once per process, and again only where memory is short. No torch."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from lmm_classifier import registry
from lmm_classifier.errors import EncoderMismatchError, LmmClassifierError, ModelError, ModelUnavailableError
from lmm_classifier.models.base import Chooser, Encoder, TextEncoder
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.types import FloatArray, Sample

log = logging.getLogger(__name__)

RETRY_AFTER_S = 60.0
"""A model that failed to open is not tried again for this long: offline, a try may wait for the network."""

_opened: dict[tuple[registry.Kind, ModelSpec], Any] = {}
_failed: dict[tuple[registry.Kind, ModelSpec], tuple[float, ModelError]] = {}
_being_opened: dict[tuple[registry.Kind, ModelSpec], threading.Lock] = {}
_used: dict[tuple[registry.Kind, ModelSpec], float] = {}
_budget: list[int] = []
_lock = threading.Lock()


def load_encoder(spec: ModelSpec) -> Encoder:
    """The one encoder of this spec in the process, opened on first use.

    Raises:
        ConfigError: unknown family.
        ModelError: it cannot be opened.
    """
    return cast("Encoder", open_model("encoder", spec))


def load_text_encoder(spec: ModelSpec) -> TextEncoder:
    """`load_encoder`, for an encoder that must take texts as well; its text tower is not opened yet.

    Raises:
        ConfigError: unknown family.
        ModelError: it cannot be opened, or its family has no text tower.
    """
    encoder = load_encoder(spec)
    if not isinstance(encoder, TextEncoder):
        raise ModelError(registry.takes_no_texts(spec.family))
    return encoder


def load_chooser(spec: ModelSpec) -> Chooser:
    """The one chooser of this spec in the process, opened on first use.

    Raises:
        ConfigError: unknown family.
        ModelError: it cannot be opened.
    """
    return cast("Chooser", open_model("chooser", spec))


@contextmanager
def answering(kind: registry.Kind, spec: ModelSpec) -> Iterator[None]:
    """Whatever a model of any package raises while it is asked becomes an error of ours.

    Raises:
        ModelError: it failed.
    """
    try:
        yield
    except LmmClassifierError:
        raise
    except Exception as error:
        raise ModelError(f"{kind} {spec.family!r} failed: {_said(error)}") from error


@contextmanager
def _opening(kind: registry.Kind, spec: ModelSpec) -> Iterator[None]:
    """Whatever a model of any package raises while it is opened becomes an error of ours.

    Raises:
        ModelUnavailableError: files or a connection failed.
        ModelError: anything else did.
    """
    try:
        yield
    except LmmClassifierError:
        raise
    except OSError as error:
        raise ModelUnavailableError(f"{kind} {spec.family!r} cannot be opened: {_said(error)}") from error
    except Exception as error:
        log.info("%s %r cannot be opened", kind, spec.family, exc_info=True)
        raise ModelError(f"{kind} {spec.family!r} cannot be opened: {_said(error)}") from error


def _said(error: Exception) -> str:
    """Kind and text of an error in one line."""
    return " ".join([f"{type(error).__name__}:", *str(error).split()])


def embedded(sample: Sample, spec: ModelSpec, step: str) -> FloatArray:
    """The vectors (r, d) that the encoder of this spec made of a sample; `step` is who asks.

    Raises:
        EncoderMismatchError: another encoder made them.
        ModelError: the encoder cannot be opened.
    """
    contract = load_encoder(spec).contract
    if contract.fingerprint not in sample.embeddings:
        raise EncoderMismatchError(
            f"{step} has encoder {contract.name} {contract.weights} (fingerprint {contract.fingerprint}), "
            f"the photos were embedded by {', '.join(sorted(sample.embeddings)) or 'none'}; "
            "give both steps the same encoder"
        )
    return sample.embeddings[contract.fingerprint]


def set_memory_budget(n_bytes: int | None) -> None:
    """Bytes of weights that stay open in this process; None: all of them do.

    Of more, models are closed from the least recently used on, but for the last one that was opened. Whoever
    is at work with one keeps it until he is done; the next one to ask opens it again.
    """
    _budget[:] = [] if n_bytes is None else [n_bytes]


def _make_room(newest: tuple[registry.Kind, ModelSpec]) -> None:
    if not _budget:
        return
    from lmm_classifier.models.runtime.memory import weight_bytes  # torch, which not every model needs

    with _lock:
        sizes = {key: weight_bytes(model) for key, model in _opened.items()}
        for key in sorted(sizes, key=lambda key: _used.get(key, 0.0)):
            if sum(sizes.values()) <= _budget[0]:
                break
            if key != newest:
                log.info(
                    "closed %s %s %s to stay within the memory budget", key[0], key[1].family, key[1].weights
                )
                del _opened[key], sizes[key]


def reset() -> None:
    """Close all models, and forget which ones could not be opened: the next call tries them again."""
    with _lock:
        _opened.clear()
        _failed.clear()


@contextmanager
def substituted(kind: registry.Kind, spec: ModelSpec, model: object) -> Iterator[None]:
    """Within, `model` is what every call finds under this kind and spec; nothing is opened for it.

    Args:
        kind: of the registry.
        spec: what callers ask for.
        model: offers what the protocol of the kind asks for.
    """
    key = (kind, spec)
    before = _opened.get(key)
    _opened[key] = model
    try:
        yield
    finally:
        del _opened[key]
        if before is not None:
            _opened[key] = before


def is_open(spec: ModelSpec) -> bool:
    """Whether a model of this spec is in memory."""
    return any(opened == spec for _, opened in tuple(_opened))


def open_model(kind: registry.Kind, spec: ModelSpec) -> Any:
    """The one model of a kind and spec in the process, opened on first use.

    Raises:
        ConfigError: unknown family.
        ModelError: it cannot be opened; for a minute it is not tried again.
    """
    key = (kind, spec)
    _used[key] = time.monotonic()
    if (found := _opened.get(key)) is not None:  # nobody waits for another one that is being opened
        return found
    with _lock:
        alone = _being_opened.setdefault(key, threading.Lock())
    with alone:  # two first requests must not open a model twice
        if (found := _opened.get(key)) is not None:
            return found
        failed_at, error = _failed.get(key, (float("-inf"), None))
        if error is not None and time.monotonic() - failed_at < RETRY_AFTER_S:
            raise _afresh(error)
        started = time.monotonic()
        try:
            open_new = registry.resolve(kind, spec.family)
            with _opening(kind, spec):
                model = open_new(spec)
        except ModelError as new_error:
            _failed[key] = (time.monotonic(), _afresh(new_error))
            raise
        _failed.pop(key, None)
        log.info("opened %s %s %s in %.1f s", kind, spec.family, spec.weights, time.monotonic() - started)
        with _lock:
            _opened[key] = model
    _make_room(key)
    return model


def _afresh(error: ModelError) -> ModelError:
    """The same error without its traceback, whose frames hold whatever was being looked at."""
    return type(error)(*error.args)
