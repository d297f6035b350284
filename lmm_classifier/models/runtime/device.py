"""On what models run: as a spec says, else as the environment does, else on the best there is."""

from __future__ import annotations

import os

import torch

from lmm_classifier.errors import ConfigError, ModelError
from lmm_classifier.models.spec import DEVICE, REQUIRE_GPU, ModelSpec

_YES, _NO = frozenset({"1", "true", "yes"}), frozenset({"", "0", "false", "no"})


def device_of(spec: ModelSpec) -> torch.device:
    """The device a spec means; of "auto", the one that IMAGE_EMBED_DEVICE forces.

    Raises:
        ModelError: it names a device this machine does not have.
        ConfigError: the environment variable does, or is neither "cuda" nor "cpu".
    """
    if spec.device == "auto":
        return _default()
    if not _is_here(spec.device):
        raise ModelError(f"device {spec.device!r} is not available here; use device: auto")
    return torch.device(spec.device)


def check_device() -> str:
    """The device of models whose settings leave it open.

    Raises:
        ConfigError: IMAGE_EMBED_REQUIRE_GPU asks for a GPU and it is none, or an environment variable has no
            meaning.
    """
    device = _default()
    required = os.environ.get(REQUIRE_GPU, "").strip().lower()
    if required not in _YES | _NO:
        raise ConfigError(f"{REQUIRE_GPU} must be 1 or 0, it is {required!r:.40}")
    if required in _YES and device.type == "cpu":
        raise ConfigError(
            f"{REQUIRE_GPU} is set and models would run on the processor: "
            + ("unset IMAGE_EMBED_DEVICE=cpu" if os.environ.get(DEVICE) else "torch sees no GPU here")
        )
    return str(device)


def _default() -> torch.device:
    forced = os.environ.get(DEVICE, "").strip().lower()
    if forced not in {"", "cuda", "cpu"}:
        raise ConfigError(f"{DEVICE} must be cuda or cpu, it is {forced!r:.40}")
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if forced and not here[forced]:
        raise ConfigError(f"{DEVICE}={forced}, and torch sees no such device here; unset it")
    return torch.device(forced or next(kind for kind in here if here[kind]))


def _is_here(device: str) -> bool:
    kind, _, number = device.partition(":")
    count = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    return int(number or 0) < count[kind]
