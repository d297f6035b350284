"""On what models run: the processor or a GPU, as the environment and the machine have it."""

from __future__ import annotations

import re

import pytest
import torch

from lmm_classifier.errors import ConfigError, ModelError
from lmm_classifier.models.runtime.device import check_device, device_of
from lmm_classifier.models.spec import ModelSpec


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """None, whatever this machine has."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    return monkeypatch


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({"DEVICE": "cuda"}, "IMAGE_EMBED_DEVICE=cuda, and torch sees no such device here; unset it"),
        ({"DEVICE": "tpu"}, "IMAGE_EMBED_DEVICE must be cuda or cpu, it is 'tpu'"),
        ({"REQUIRE_GPU": "1"}, "models would run on the processor: torch sees no GPU here"),
        ({"REQUIRE_GPU": "Yes", "DEVICE": "cpu"}, "run on the processor: unset IMAGE_EMBED_DEVICE=cpu"),
        ({"REQUIRE_GPU": "perhaps"}, "IMAGE_EMBED_REQUIRE_GPU must be 1 or 0, it is 'perhaps'"),
    ],
)
def test_what_the_environment_asks_for_and_cannot_have_is_an_error(
    variables: dict[str, str], complaint: str, gpus: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        gpus.setenv(f"IMAGE_EMBED_{name}", value)
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        check_device()


def test_the_environment_decides_for_models_that_name_no_device(gpus: pytest.MonkeyPatch) -> None:
    assert check_device() == "cpu"
    gpus.setattr(torch.cuda, "is_available", lambda: True)
    gpus.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_of(ModelSpec("siglip")) == torch.device("cuda")
    gpus.setenv("IMAGE_EMBED_REQUIRE_GPU", "1")
    assert check_device() == "cuda"
    gpus.setenv("IMAGE_EMBED_REQUIRE_GPU", "no")
    gpus.setenv("IMAGE_EMBED_DEVICE", "CPU")
    assert device_of(ModelSpec("siglip")) == torch.device("cpu")
    assert device_of(ModelSpec("siglip", device="cuda:1")) == torch.device("cuda:1")


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7", "mps"])
def test_a_device_that_is_named_must_be_here(device: str, gpus: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="is not available here"):
        device_of(ModelSpec("siglip", device=device))
