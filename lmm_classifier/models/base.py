"""What the rest of the package may ask of a model, and the one place that opens one. No torch."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self, cast, runtime_checkable

from PIL import Image
from pydantic import model_validator
from pydantic.dataclasses import dataclass

from lmm_classifier import registry
from lmm_classifier.errors import EncoderMismatchError, LmmClassifierError, ModelError, ModelUnavailableError
from lmm_classifier.options import (
    Device,
    DeviceMap,
    Dtype,
    Flag,
    MaxMemory,
    Pixels,
    check_budget,
    check_placement,
)
from lmm_classifier.types import EncoderContract, FloatArray, Sample

log = logging.getLogger(__name__)

DEVICE, REQUIRE_GPU = "IMAGE_EMBED_DEVICE", "IMAGE_EMBED_REQUIRE_GPU"
"""Environment variables that `models.device` obeys."""
RETRY_AFTER_S = 60.0
"""A model that failed to open is not tried again for this long: offline, a try may wait for the network."""


@dataclass(frozen=True, config={"extra": "forbid"})
class ModelSpec:
    """Which model, from where, on what. Hashable: equal specs share one loaded model.

    Attributes:
        family: name in the registry, such as "siglip".
        weights: hub id ("google/siglip-so400m-patch14-384"), local folder ("./my-model"), shipped
            checkpoint ("shipped:siglip-digits"), or "" for the family's default; `clip` also takes
            open_clip's "architecture/tag", `onnx` a file, `sam2` and `detr-panoptic` names of files behind a
            "#", and `openai_api` the address of a server and a model's name behind it.
        revision: branch, tag or commit on the hub; ignored for local weights.
        device: "auto" (what IMAGE_EMBED_DEVICE says, else the first CUDA device, Apple's, or the processor)
            or a torch device.
        dtype: arithmetic of the model, or "auto": bfloat16 on CUDA and on processors that have AVX512-BF16
            or AMX, float32 elsewhere. Vectors of two dtypes never mix: name one where an index built on
            one machine serves on another, or figures must not depend on the machine.
        compile: let torch compile the model, for encoders that run in torch. The first batch of each size
            takes many seconds and needs a C++ compiler; the ones after it are faster. Vectors change by
            rounding only, so this is no part of the contract.
        cache_dir: folder in which checkpoints are looked for and kept, laid out as the hub's library does it;
            None leaves it to that library and its environment variables. No part of the contract either.
        min_pixels: of a photo as a vision-language model sees it; a smaller one is enlarged. None: what its
            image processor says, but no more than `max_pixels`.
        max_pixels: of a photo as it sees it; a larger one is scaled down. None: 1280 x 28 x 28 or what its
            image processor says, whichever is less, but no less than `min_pixels`.
        device_map: how a model that may be larger than one device is spread over GPUs, then the processor's
            memory: "auto" and "balanced" fill GPUs evenly, "sequential" one after the other. None: one
            device; where that is too small and `device` is "auto", all GPUs.
        max_memory: (device, size) of what weights may take: of GPUs by number, "cpu" and "mps"; sizes are
            bytes or such as "20GiB". Devices left out are not used. None: what is free.
        offload_folder: where `device_map` may put what fits into no memory; None: nowhere.
    """

    family: str
    weights: str = ""
    revision: str = "main"
    device: Device = "auto"
    dtype: Dtype = "auto"
    compile: Flag = False
    cache_dir: Path | None = None
    min_pixels: Pixels | None = None
    max_pixels: Pixels | None = None
    device_map: DeviceMap | None = None
    max_memory: MaxMemory | None = None
    offload_folder: Path | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_budget(self.min_pixels, self.max_pixels)
        check_placement(self.device, self.device_map, self.offload_folder)
        return self

    @property
    def budget(self) -> str:
        """The pixels that a photo is given here, for what depends on them; "" where they are left open."""
        if self.min_pixels is None and self.max_pixels is None:
            return ""
        return f"{self.min_pixels or 'default'} to {self.max_pixels or 'default'} pixels"


class Encoder(Protocol):
    """Images to unit vectors. An encoder is constructed from a ModelSpec.

    It may say how many pixels it looks at, as `Downscaling` has it.
    """

    @property
    def contract(self) -> EncoderContract:
        """Everything that decides the vectors."""
        ...

    def encode(self, images: Sequence[Image.Image]) -> FloatArray:
        """Encode RGB images of any size.

        Returns:
            float32 (len(images), contract.dim), each row of L2 norm 1. An image's vector does not
            depend on the other images of the call beyond rounding.

        Raises:
            ModelError: the model failed.
        """
        ...


@runtime_checkable
class RawEncoder(Encoder, Protocol):
    """An encoder that also tells what its model gives before that is normalised."""

    def encode_raw(self, images: Sequence[Image.Image]) -> FloatArray:
        """As `encode`, with rows of any length in the direction of those."""
        ...


@runtime_checkable
class TextEncoder(Encoder, Protocol):
    """An encoder that puts texts into the space of its images, so that a name can stand for examples."""

    def encode_text(self, texts: Sequence[str]) -> FloatArray:
        """Encode texts; what goes beyond the model's length is cut off.

        The text tower is opened by the first call.

        Returns:
            float32 (len(texts), contract.dim), each row of L2 norm 1.

        Raises:
            ModelError: the weights hold no text tower, or it failed.
        """
        ...


class Downscaling(Protocol):
    """What an encoder or a chooser may offer besides: that it scales photos down before it looks at them.

    An encoder may find it out while it is opened; of a chooser, which is opened late, it must be an
    attribute of the class.
    """

    @property
    def input_size(self) -> int | None:
        """Px that the preprocessing scales the shorter side of a photo to, at most.

        A JPEG may be decoded at a reduced DCT scale that is not below it. None: all pixels are needed.
        """
        ...


AnswerForm = Literal["text", "letter", "yes_no"]


@plain_dataclass(frozen=True, slots=True, eq=False)
class Question:
    """One image, one prompt, and the answers to compare.

    Attributes:
        image: what is asked about; shown first.
        prompt: the question; `models.prompt.asked` gives all that is said after the image.
        options: answers to compare, distinct.
        form: how an option is given: by its own text; by the letter it is listed under, the prompt's list
            and closing line being added; or, of the options "Yes" and "No", by that word.
        exemplars: pictures shown between image and prompt, each after the text that says what it is.
        due: `time.monotonic` from which nobody waits for the answer any more; None: whenever it comes.
    """

    image: Image.Image
    prompt: str
    options: tuple[str, ...]
    form: AnswerForm = "text"
    exemplars: tuple[tuple[str, Image.Image], ...] = ()
    due: float | None = None


class Chooser(Protocol):
    """A vision-language model that rates given answers. A chooser is constructed from a ModelSpec.

    Its class may say how many pixels it looks at, as `Downscaling` has it.
    """

    def log_likelihoods(self, questions: Sequence[Question], batch_size: int) -> list[FloatArray]:
        """Rate every option of every question, `batch_size` (question, option) pairs per forward pass.

        Returns:
            per question, float32 (len(options),), natural logarithms, given image, exemplars and prompt: in
            the form "text", of the likelihood of the option, whole and followed by the end of the answer; in
            the others, of the probability that the answer begins with the option's letter or word.

        Raises:
            ModelError: the model failed.
        """
        ...


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


def input_size_of(model: object) -> int | None:
    """The `input_size` of an encoder or a class of choosers; None, as of those that do not say: all pixels.

    Raises:
        ModelError: it is no number of pixels.
    """
    size = getattr(model, "input_size", None)
    if size is None or (isinstance(size, int) and size >= 1):
        return size
    raise ModelError(f"`input_size` must be a positive number of pixels or None, got {size!r}")


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
