"""Where the weights of a large model go: to one device, or over GPUs, the processor's memory and a disk."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import init_empty_weights
from accelerate.utils import (
    calculate_maximum_sizes,
    convert_file_size_to_int,
    find_tied_parameters,
    get_balanced_memory,
    get_max_memory,
    infer_auto_device_map,
)

from lmm_classifier.errors import ModelError, ModelOutOfMemoryError
from lmm_classifier.models.runtime.device import device_of
from lmm_classifier.models.runtime.inference import is_out_of_memory
from lmm_classifier.models.runtime.memory import spread_bytes
from lmm_classifier.models.runtime.pretrained import (
    dtype_of,
    first_line,
    opening,
    pretrained,
    pretrained_model,
    refuse_missing,
)
from lmm_classifier.models.spec import ModelSpec

Place = int | str
"""The number of a GPU, "mps", "cpu" or "disk", as accelerate writes them."""
_ROOM = 0.9
"""Share of the free memory that spread weights take without a `max_memory`: a pass needs some too."""
_GIB = 2**30


class _FitsNowhere(Exception):
    """The weights fit neither on one device nor on those they may be spread over."""


def placed_model(auto: Any, spec: ModelSpec, weights: str, config: Any) -> Any:
    """Open a model for inference, on one device or spread as its spec allows; see `entry_device`.

    Args:
        auto: the class of transformers that opens it, such as AutoModelForImageTextToText.
        spec: says which devices, and how much of each.
        weights: local folder or hub id.
        config: of the checkpoint.

    Raises:
        ModelUnavailableError: neither on this machine nor reachable.
        ModelOutOfMemoryError: the weights fit nowhere, which is found out before they are read, or did not
            when they were.
        ModelError: the files are there, but are no usable checkpoint, or `max_memory` names what is not here.
    """
    with _memory_permitting(weights):
        if getattr(config, "quantization_config", None) is not None:
            if spec.device_map is not None or spec.max_memory is not None:
                raise ModelError(
                    f"model {weights!r} is quantised: what its layers take is not known before it is opened; "
                    "leave device_map and max_memory out"
                )
            return pretrained_model(auto.from_pretrained, spec, weights)
        empty = empty_model(auto, spec, weights, config)
        plan = plan_for(empty, spec, weights)
        if plan is None:
            return pretrained_model(auto.from_pretrained, spec, weights)
        model = _spread(auto, spec, weights, plan)
        _share_on_disk(model, find_tied_parameters(empty))
        return model


def empty_model(auto: Any, spec: ModelSpec, weights: str, config: Any) -> Any:
    """The model of a configuration in the spec's dtype, without memory for its weights."""
    with opening(spec, weights):
        with init_empty_weights():
            empty = auto.from_config(config, dtype=dtype_of(spec))
        empty.tie_weights()  # accelerate has given each place its own; what is shared takes memory once
        return empty


def free_memory(spec: ModelSpec) -> dict[Place, int]:
    """Bytes that are free on each device that the spec may use, the fastest first."""
    device = device_of(spec)
    if device.type == "cpu":
        return {"cpu": psutil.virtual_memory().available}
    if device.type == "cuda" and spec.device_map is None and spec.device != "auto":
        index = torch.cuda.current_device() if device.index is None else device.index
        return {index: torch.cuda.mem_get_info(index)[0] + _unused(index)}
    # Asks every GPU, which costs some of its memory: only where more than one may be used.
    free: dict[Place, int] = dict(get_max_memory())
    return {place: size + (_unused(place) if isinstance(place, int) else 0) for place, size in free.items()}


def _unused(gpu: int) -> int:
    """Bytes that torch keeps of models that were closed: it is going to use them first."""
    return torch.cuda.memory_reserved(gpu) - torch.cuda.memory_allocated(gpu)


def plan_for(empty: Any, spec: ModelSpec, weights: str) -> dict[str, Place] | None:
    """Where each module of a model goes; None: all of it to the spec's device.

    Args:
        empty: the model on "meta", in its dtype.
        spec: what is allowed.
        weights: for messages.

    Raises:
        ModelOutOfMemoryError: it fits nowhere; the message says what would.
        ModelError: `max_memory` names a device that is not here.
    """
    try:
        return _where(empty, spec, _allowed(spec, weights))
    except _FitsNowhere:
        raise ModelOutOfMemoryError(_refusal(empty, spec, weights)) from None


def entry_device(model: Any) -> torch.device:
    """The device that a model's inputs go to, however its layers are spread."""
    places = _places(model)
    fast = [place for place in places if place not in ("cpu", "disk")]
    if not places:
        device: torch.device = model.device
        return device
    return torch.device(fast[0] if fast else "cpu")


def is_on_several_gpus(model: Any) -> bool:
    """Whether what one layer gives has to be moved for another."""
    return len({place for place in _places(model) if place not in ("cpu", "disk")}) > 1


def _places(model: Any) -> list[Place]:
    """Of each part in order, as accelerate remembers them; none of a model that is not spread."""
    return [
        place if isinstance(place, int) else str(place)
        for place in getattr(model, "hf_device_map", {}).values()
    ]


def _allowed(spec: ModelSpec, weights: str) -> dict[Place, int]:
    """Bytes that the weights may take of each device."""
    free = free_memory(spec)
    if spec.max_memory is None:
        return free
    limits = {place: convert_file_size_to_int(size) for place, size in spec.max_memory}
    if unknown := [place for place in limits if place not in free]:
        raise ModelError(
            f"model {weights!r}: max_memory names {_named(unknown[0])}, and it may run on "
            f"{', '.join(map(_named, free))} here; leave that out"
        )
    return {place: min(size, limits[place]) for place, size in free.items() if place in limits}


def _where(empty: Any, spec: ModelSpec, allowed: Mapping[Place, int]) -> dict[str, Place] | None:
    """As `plan_for`; raises _FitsNowhere."""
    needed, (largest, _) = calculate_maximum_sizes(empty)
    roomy = {place: int(size * (_ROOM if spec.max_memory is None else 1)) for place, size in allowed.items()}
    gpus: dict[Place, int] = {place: size for place, size in roomy.items() if isinstance(place, int)}
    first = next(iter(allowed), None)
    if spec.device_map is not None:
        if largest > max(roomy.values(), default=0):  # where each layer is brought in its turn
            raise _FitsNowhere
        found = _spread_over(empty, roomy, spec.device_map)
        if "disk" not in found.values() or spec.offload_folder is not None:
            return found
    elif spec.device == "auto" and len(gpus) > 1 and needed > next(iter(gpus.values())):
        found = _spread_over(empty, gpus, "auto")
        if "disk" not in found.values():
            return found
    if first is not None and needed <= allowed[first]:
        return {"": first} if spec.max_memory else None
    raise _FitsNowhere


def _spread_over(empty: Any, memory: Mapping[Place, int], how: str) -> dict[str, Place]:
    """Module -> place; "disk" for what does not fit."""
    whole = list(getattr(empty, "_no_split_modules", None) or ())  # layers that must not be torn apart
    limits = dict(memory)
    if how != "sequential":
        limits = get_balanced_memory(empty, limits, whole)
    return dict(infer_auto_device_map(empty, limits, whole))


def _refusal(empty: Any, spec: ModelSpec, weights: str) -> str:
    """How much is needed, how much there is, and what would fit."""
    needed, (largest, _) = calculate_maximum_sizes(empty)
    allowed = _allowed(spec, weights)
    dtype = str(empty.dtype).removeprefix("torch.")
    verb = "allowed" if spec.max_memory else "free"
    there = ", ".join(f"{_size(size)} is {verb} {_on(place)}" for place, size in allowed.items())
    remedies: list[str] = []
    device = "auto" if ":" in spec.device else spec.device
    spread = replace(spec, device=device, device_map=spec.device_map or "auto")
    if spec.device_map is None and _fits(empty, spread, weights):
        remedies.append("device_map: auto")
    elif spec.offload_folder is None and _fits(empty, replace(spread, offload_folder=Path()), weights):
        remedies.append(("device_map: auto with " if spec.device_map is None else "") + "an offload_folder")
    if spec.max_memory:
        remedies.append("a larger max_memory")
    if empty.dtype == torch.float32:  # last: the model is changed
        halved = empty.to(torch.bfloat16)
        if _fits(halved, spec, weights):
            remedies.insert(0, f"dtype: bfloat16, which needs {_size(calculate_maximum_sizes(halved)[0])}")
    remedies.append("a smaller model")
    return (
        f"model {weights!r} needs {_size(needed)} for its weights in {dtype}, {_size(largest)} of it in one "
        f"piece, and {there}: use {', '.join(remedies[:-1])}{' or ' if remedies[:-1] else ''}{remedies[-1]}"
    )


def _fits(empty: Any, spec: ModelSpec, weights: str) -> bool:
    try:
        _where(empty, spec, _allowed(spec, weights))
    except _FitsNowhere:
        return False
    return True


def _spread(auto: Any, spec: ModelSpec, weights: str, plan: dict[str, Place]) -> Any:
    """Open the model with its modules where the plan has them."""
    folder = _folder_for(spec, weights) if "disk" in plan.values() else None
    try:
        model, report = pretrained(
            auto.from_pretrained,
            spec,
            weights,
            dtype=dtype_of(spec),
            use_safetensors=True,
            output_loading_info=True,
            device_map=plan,
            offload_folder=folder,
        )
        refuse_missing(weights, report["missing_keys"])
    except BaseException:
        _remove(folder)
        raise
    weakref.finalize(model, _remove, folder)
    spread_bytes[model] = _in_memory(model, plan)
    return model.eval().requires_grad_(False)


def _share_on_disk(model: Any, shared: Sequence[Sequence[str]]) -> None:
    """Let all that share a weight on disk find it: transformers 5.6 keeps it under one of its names alone."""
    for names in shared:
        kept = [
            (hook.weights_map, name.rpartition(".")[2], hook)
            for name in names
            if getattr(hook := _hook_of(model, name), "weights_map", None) is not None
        ]
        found = [weights for weights, key, _ in kept if _holds(weights, key)]
        for weights, key, hook in kept:
            if found and not _holds(weights, key):
                hook.weights_map = ChainMap(weights, *found)


def _hook_of(model: Any, name: str) -> Any:
    """What accelerate hooked to the module of a parameter; None: nothing."""
    return getattr(model.get_submodule(name.rpartition(".")[0]), "_hf_hook", None)


def _holds(weights: Mapping[str, torch.Tensor], key: str) -> bool:
    try:
        weights[key]
    except KeyError:
        return False
    return True


def _folder_for(spec: ModelSpec, weights: str) -> Path:
    """A new folder: files of two models would have the same names."""
    parent = (spec.offload_folder or Path()).expanduser()
    try:
        parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="weights-", dir=parent))
    except OSError as error:
        raise ModelError(
            f"model {weights!r} cannot be kept in {parent} ({first_line(error)}): check `offload_folder`"
        ) from error


def _remove(folder: Path | None) -> None:
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _in_memory(model: Any, plan: Mapping[str, Place]) -> int:
    """Bytes of the weights that are not on disk."""
    on_disk = tuple(f"{name}." if name else "" for name, place in plan.items() if place == "disk")
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return sum(
        t.nbytes for name, t in tensors if t.device.type != "meta" or not f"{name}.".startswith(on_disk)
    )


@contextmanager
def _memory_permitting(weights: str) -> Iterator[None]:
    """What runs out of memory while a model is opened becomes an error of ours that says so."""
    try:
        yield
    except (ModelError, RuntimeError, MemoryError) as error:
        cause = error.__cause__ if isinstance(error, ModelError) else error
        if isinstance(cause, Exception) and is_out_of_memory(cause):
            raise ModelOutOfMemoryError(
                f"memory ran out while model {weights!r} was opened: close what else uses it, or use "
                f"device_map: auto, dtype: bfloat16 or a smaller model ({first_line(cause)})"
            ) from error
        raise


def _named(place: Place) -> str:
    return f"GPU {place}" if isinstance(place, int) else place


def _on(place: Place) -> str:
    return "in the processor's memory" if place == "cpu" else f"on {_named(place)}"


def _size(n_bytes: float) -> str:
    """Bytes for people, such as 15.2 GiB."""
    for unit, size in (("GiB", _GIB), ("MiB", 2**20)):
        if n_bytes >= size / 10:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes / 2**10:.1f} KiB"
