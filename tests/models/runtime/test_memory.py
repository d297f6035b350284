"""Batches that do not fit into memory: halved, remembered, and said once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.modules.module import register_module_forward_pre_hook

from lmm_classifier.errors import ModelError, ModelOutOfMemoryError
from lmm_classifier.models.loading import load_encoder
from lmm_classifier.models.spec import ModelSpec

Noise = Callable[..., Image.Image]
Tiny = Callable[[str], str]
FAMILIES = ("siglip", "clip", "dinov2", "dinov2-timm", "dinov3")


def of_cuda() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total ...")


def of_the_processor() -> None:
    torch.empty(2**55, dtype=torch.uint8)  # the allocator's own words


@contextmanager
def memory_for(n: int, fail: Callable[[], None] = of_cuda) -> Iterator[list[int]]:
    """Patch embeddings, the only convolution of these models, refuse more than n images; sizes seen."""
    sizes: list[int] = []

    def hook(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, torch.nn.Conv2d):
            sizes.append(len(inputs[0]))
            if len(inputs[0]) > n:
                fail()

    handle = register_module_forward_pre_hook(hook)
    try:
        yield sizes
    finally:
        handle.remove()


@pytest.mark.parametrize("fail", [of_cuda, of_the_processor])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_that_does_not_fit_is_halved_until_it_does(
    family: str, fail: Callable[[], None], tiny: Tiny, noise: Noise, caplog: pytest.LogCaptureFixture
) -> None:
    images = [noise(40, 30, seed=i) for i in range(37)]
    encoder = load_encoder(ModelSpec(family, tiny(family), dtype="float32"))
    expected = encoder.encode(images)
    caplog.set_level(logging.WARNING)
    with memory_for(5, fail) as sizes:
        vectors = encoder.encode(images)
        first = len(sizes)
        np.testing.assert_array_equal(encoder.encode(images), vectors)
    np.testing.assert_allclose(vectors, expected, atol=2e-6)
    assert sizes[:first] == [37, 19, 10, *[5] * 7, 2]  # three refusals, then nothing is tried in vain
    assert sizes[first:] == [*[5] * 7, 2]  # and later calls know
    [warning] = ours(caplog)
    assert warning == (
        f"{tiny(family)!r}: 37 images at once need more memory than there is; from now on it takes at most 5"
    )


@pytest.mark.parametrize("fail", [of_cuda, of_the_processor])
def test_one_photo_that_does_not_fit_is_one_line(
    fail: Callable[[], None], tiny: Tiny, noise: Noise, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = load_encoder(ModelSpec("siglip", tiny("siglip"), dtype="float32"))
    with memory_for(0, fail) as sizes, pytest.raises(ModelOutOfMemoryError) as caught:
        encoder.encode([noise(9, 9, seed=i) for i in range(4)])
    assert sizes == [4, 2, 1]
    assert str(caught.value).startswith(
        f"{tiny('siglip')!r} needs more memory than there is for 1 images: use "
    )
    assert "\n" not in str(caught.value)
    assert not ours(caplog)


def test_another_failure_is_not_tried_again(tiny: Tiny, noise: Noise) -> None:
    def fail() -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    encoder = load_encoder(ModelSpec("siglip", tiny("siglip"), dtype="float32"))
    with (
        memory_for(0, fail) as sizes,
        pytest.raises(ModelError, match="failed on 4 images: CUDA error") as caught,
    ):
        encoder.encode([noise(9, 9, seed=i) for i in range(4)])
    assert sizes == [4]
    assert not isinstance(caught.value, ModelOutOfMemoryError)


def test_texts_are_halved_as_well(tiny: Tiny) -> None:
    encoder: Any = load_encoder(ModelSpec("clip", tiny("clip"), dtype="float32"))
    texts = [f"a photo of the number {i}" for i in range(7)]
    expected = encoder.encode_text(texts)

    def hook(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, torch.nn.Embedding) and len(inputs[0]) > 2:
            of_cuda()

    handle = register_module_forward_pre_hook(hook)
    try:
        np.testing.assert_allclose(encoder.encode_text(texts), expected, atol=2e-6)
    finally:
        handle.remove()


def ours(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("lmm_classifier")]
