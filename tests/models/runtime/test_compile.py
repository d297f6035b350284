"""Models that torch compiles: the same vectors, few shapes, and one line where it cannot be done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from lmm_classifier.errors import ModelError
from lmm_classifier.models.loading import load_chooser, load_encoder
from lmm_classifier.models.spec import ModelSpec

Noise = Callable[..., Image.Image]
Tiny = Callable[[str], str]


@pytest.fixture
def compiled_sizes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Batch sizes that reach the compiler; instead of inductor, a backend that runs the traced graph."""
    sizes: list[int] = []

    def backend(graph: torch.fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        pixels = [example for example in examples if isinstance(example, torch.Tensor) and example.ndim == 4]
        sizes.extend(len(p) for p in pixels if p.shape[1:] == (3, 32, 32))
        return graph.forward

    original = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda model, **options: original(model, backend=backend, **options)
    )
    torch.compiler.reset()
    yield sizes
    torch.compiler.reset()


def test_batches_are_filled_up_so_that_few_shapes_are_compiled(
    tiny: Tiny, noise: Noise, compiled_sizes: list[int]
) -> None:
    images = [noise(30, 20, seed=i) for i in range(70)]
    expected = load_encoder(ModelSpec("siglip", tiny("siglip"), dtype="float32")).encode(images)
    encoder = load_encoder(ModelSpec("siglip", tiny("siglip"), dtype="float32", compile=True))
    for n in (3, 4, 1, 2, 5, 7, 8, 13, 25, 33, 70):  # 70 are 64 and 6
        np.testing.assert_allclose(encoder.encode(images[:n]), expected[:n], atol=2e-6)
    assert sorted(compiled_sizes) == [1, 2, 4, 8, 16, 32, 64]
    assert encoder.encode([]).shape == (0, 32)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["siglip", "clip"])
def test_vectors_of_the_compiled_model_are_those_of_the_model(family: str, tiny: Tiny, noise: Noise) -> None:
    images = [noise(30 + i, 20, seed=i) for i in range(3)]
    eager = load_encoder(ModelSpec(family, tiny(family), dtype="float32"))
    encoder = load_encoder(ModelSpec(family, tiny(family), dtype="float32", compile=True))
    vectors = encoder.encode(images)
    assert (vectors * eager.encode(images)).sum(axis=1).min() >= 0.999
    alone = np.concatenate([encoder.encode([image]) for image in images])
    np.testing.assert_allclose(vectors, alone, atol=1e-5)
    assert encoder.contract == eager.contract


def test_without_a_compiler_it_is_one_line(
    tiny: Tiny, noise: Noise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # else an earlier run may have left the code
    monkeypatch.setattr(config.cpp, "cxx", (None, "no-such-compiler"))
    torch.compiler.reset()
    encoder = load_encoder(ModelSpec("dinov2", tiny("dinov2"), dtype="float32", device="cpu", compile=True))
    with pytest.raises(ModelError, match="cannot be compiled here; leave `compile` out") as caught:
        encoder.encode([noise(9, 9)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("load", "family"),
    [
        (load_encoder, "onnx"),
        (load_encoder, "descriptor"),
        (load_encoder, "fake"),
        (load_chooser, "qwen-vl"),
        (load_chooser, "fake"),
    ],
)
def test_families_that_cannot_be_compiled_say_so(load: Callable[[ModelSpec], Any], family: str) -> None:
    with pytest.raises(ModelError) as caught:
        load(ModelSpec(family, compile=True))
    assert str(caught.value) == f"{family!r} is not compiled by torch; leave `compile` out"


@pytest.mark.parametrize("value", ["true", 1, "off"])
def test_it_is_a_switch_and_nothing_else(value: object) -> None:
    with pytest.raises(ValidationError, match="compile"):
        ModelSpec("siglip", compile=value)  # type: ignore[arg-type]
