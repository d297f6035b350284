"""Opening checkpoints: where the weights are, on which device, and what goes wrong in words."""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from textwrap import shorten
from typing import Any, TypeVar

import torch
from huggingface_hub import snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from huggingface_hub.utils import logging as hub_logging
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from lmm_classifier.errors import ModelError, ModelUnavailableError
from lmm_classifier.models.runtime.device import device_of
from lmm_classifier.models.spec import ModelSpec

T = TypeVar("T")

_SHIPPED = "shipped:"
_CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
_LONGEST_REASON = 250  # characters; some of transformers' list every architecture there is
_UNUSABLE = (  # what the libraries raise over files that are damaged or of another kind
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    SafetensorError,
    StrictDataclassError,  # a field of config.json
    pickle.UnpicklingError,
)


def locate(weights: str) -> str:
    """Turn the weights of a spec into what `from_pretrained` takes: a folder or a hub id.

    Raises:
        ModelUnavailableError: a local or shipped folder that does not exist.
    """
    if weights.startswith(_SHIPPED):
        folder = _CHECKPOINTS / weights.removeprefix(_SHIPPED)
        if folder.parent != _CHECKPOINTS or not (folder / "config.json").is_file():
            known = ", ".join(
                sorted(_SHIPPED + path.parent.name for path in _CHECKPOINTS.glob("*/config.json"))
            )
            raise ModelUnavailableError(f"no shipped checkpoint {weights!r}; shipped are {known}")
        return str(folder)
    if is_local(weights):
        folder = local_path(weights)
        if not folder.is_dir():
            raise ModelUnavailableError(f"model folder {weights!r} does not exist; check `weights`")
        return str(folder)
    return weights


def is_local(weights: str) -> bool:
    """Whether weights are written as a path, and not as a name on the hub."""
    return weights.startswith(("/", "./", "../", "~"))


def local_path(weights: str) -> Path:
    """The path that weights are written as; the home of a user who does not exist is no place either."""
    with suppress(RuntimeError):
        return Path(weights).expanduser()
    return Path(weights)


def pretrained(loader: Callable[..., T], spec: ModelSpec, weights: str, **options: Any) -> T:
    """Call a `from_pretrained` of transformers, never running code that came with the weights.

    Raises:
        ModelUnavailableError: neither on this machine nor reachable.
        ModelError: the files are there, but are no usable checkpoint of this kind.
    """
    options |= {"revision": spec.revision, "cache_dir": cache_of(spec)}
    with opening(spec, weights):
        return loader(locate(weights), trust_remote_code=False, **options)


def cache_of(spec: ModelSpec) -> Path | None:
    """Where the hub's library is to look and to keep; None leaves it to its environment variables."""
    return spec.cache_dir.expanduser() if spec.cache_dir else None


def checkpoint_folder(spec: ModelSpec, weights: str, files: Collection[str], hub_id: str = "") -> Path:
    """The folder of a checkpoint that is not transformers'; of one on the hub, `files` are fetched.

    Args:
        spec: says which revision.
        weights: local folder or hub id.
        files: names or patterns.
        hub_id: where the weights are, if they go by another name.

    Raises:
        ModelUnavailableError: neither on this machine nor reachable.
    """
    with opening(spec, weights):
        where = locate(hub_id or weights)
        if not Path(where).is_dir():
            where = snapshot_download(
                where, revision=spec.revision, cache_dir=cache_of(spec), allow_patterns=list(files)
            )
        return Path(where)


@contextmanager
def opening(spec: ModelSpec, weights: str) -> Iterator[None]:
    """Keep the model libraries quiet, and say in our words why they cannot open the weights.

    Raises:
        ModelUnavailableError: neither on this machine nor reachable.
        ModelError: the files are there, but are no usable checkpoint of this kind.
    """
    unusable = f"model {weights!r} cannot be opened as {spec.family!r}"
    try:
        with _quietly():
            yield
    except OSError as error:
        if is_local(weights) or weights.startswith(_SHIPPED) or Path(weights).is_dir():
            raise ModelError(f"{unusable}: {first_line(error)}") from error
        here = f"in {spec.cache_dir}" if spec.cache_dir else "on this machine"
        raise ModelUnavailableError(
            f"model {weights!r} is neither {here} nor reachable: connect once so that it can be "
            f"downloaded, or set `weights` to a local folder ({first_line(error)})"
        ) from error
    except _UNUSABLE as error:
        raise ModelError(f"{unusable}: {first_line(error)}") from error


def pretrained_model(loader: Callable[..., Any], spec: ModelSpec, weights: str) -> Any:
    """Open a model for inference on the spec's device, refusing one with missing weights.

    transformers fills missing weights with random numbers and only logs it.
    """
    model, report = pretrained(
        loader, spec, weights, dtype=dtype_of(spec), use_safetensors=True, output_loading_info=True
    )
    refuse_missing(weights, report["missing_keys"])
    return for_inference(model, spec, weights)


def refuse_missing(weights: str, missing: Collection[str]) -> None:
    """Raise a ModelError if a checkpoint lacks weights, which its library would leave random."""
    if missing:
        raise ModelError(
            f"model {weights!r} lacks {len(missing)} weights of its architecture, such as {min(missing)!r}"
        )


def for_inference(model: torch.nn.Module, spec: ModelSpec, weights: str) -> Any:
    """The model in evaluation mode, without gradients, on the spec's device."""
    device = device_of(spec)
    try:
        return model.eval().requires_grad_(False).to(device)
    except RuntimeError as error:  # torch's out-of-memory is one
        raise ModelError(f"model {weights!r} cannot be moved to {device}: {first_line(error)}") from error


def dtype_of(spec: ModelSpec) -> torch.dtype:
    """The arithmetic a spec means; float16 is never chosen, it overflows in some of these models."""
    if spec.dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[spec.dtype]
    device = device_of(spec).type
    fast = device == "cuda" or (device == "cpu" and _multiplies_bfloat16())
    return torch.bfloat16 if fast else torch.float32


def _multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for it (AVX512-BF16 or AMX); without, it is slower than float32.

    Every processor with AMX tiles multiplies bfloat16 on them. torch 2.9 has the private questions only.
    """
    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    private = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in private)


def checkpoint_state(spec: ModelSpec, weights: str) -> str:
    """What tells an opened checkpoint from its successor without reading gigabytes.

    Args:
        spec: says which revision, and in which cache.
        weights: local folder or hub id.

    Returns:
        the commit of one from the hub; of a folder, a digest of the names, sizes and times of its files.

    Raises:
        ModelUnavailableError: it is neither a folder nor in the cache.
    """
    with opening(spec, weights):
        folder = Path(locate(weights))
        if not folder.is_dir():
            cached = try_to_load_from_cache(weights, "config.json", cache_of(spec), spec.revision)
            if not isinstance(cached, str):
                raise FileNotFoundError(f"no config.json of revision {spec.revision!r} in the cache")
            return f"{weights} {Path(cached).parent.name}"
        files = [(path, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
    state = [(path.name, stat.st_size, stat.st_mtime_ns) for path, stat in files]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of all tensors: equal for equal weights in any file layout."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def preprocessing_of(image_processor: Any) -> str:
    """Canonical JSON of an image processor; the class name tells the resize backend, which moves pixels."""
    settings = {key: value for key, value in image_processor.to_dict().items() if not key.startswith("_")}
    settings["class"] = type(image_processor).__name__
    settings.pop("image_processor_type", None)
    return json.dumps(settings, sort_keys=True, default=str)


def first_line(error: Exception) -> str:
    """The first line of an error, shortened, or its kind where it says nothing: our messages are one line."""
    line = str(error).strip().partition("\n")[0]
    return shorten(line, _LONGEST_REASON, placeholder=" ...") or type(error).__name__


_speaking = threading.RLock()  # what is silenced is the process's: models are opened one after the other


@contextmanager
def _quietly() -> Iterator[None]:
    """No bars but of a download on a terminal, no retries one by one, no list of the unused weights.

    open_clip logs to the root logger, to which Python would then add a handler of its own.
    """
    with _speaking:
        yield from _silenced()


def _silenced() -> Iterator[None]:
    root, nowhere = logging.getLogger(), logging.NullHandler()
    accelerate = logging.getLogger("accelerate")  # warns that what was to go to a disk went there
    spreading = accelerate.level
    shown, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    hub_verbosity, downloads_shown = hub_logging.get_verbosity(), not are_progress_bars_disabled()
    transformers_logging.disable_progress_bar()  # and the hub's with them
    if downloads_shown and sys.stderr.isatty():  # a person waiting for gigabytes wants to see them come
        enable_progress_bars()
    transformers_logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    accelerate.setLevel(logging.ERROR)
    root.addHandler(nowhere)
    try:
        yield
    finally:
        root.removeHandler(nowhere)
        accelerate.setLevel(spreading)
        hub_logging.set_verbosity(hub_verbosity)
        transformers_logging.set_verbosity(verbosity)
        if shown:
            transformers_logging.enable_progress_bar()  # and the hub's with them
        (enable_progress_bars if downloads_shown else disable_progress_bars)()
