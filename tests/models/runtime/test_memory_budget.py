"""How much open models take, and that the least recently used ones go when it is too much."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from safetensors import safe_open

from lmm_classifier.models.loading import is_open, load_encoder, load_text_encoder, set_memory_budget
from lmm_classifier.models.runtime.checkpoint_cache import SHIPPED
from lmm_classifier.models.runtime.memory import weight_bytes
from lmm_classifier.models.spec import ModelSpec
from synthetic import picture
from tiny_models import write_dinov2, write_onnx


@pytest.fixture(autouse=True)
def no_budget() -> Iterator[None]:
    yield
    set_memory_budget(None)


def bytes_in(folder: Path) -> int:
    """Of the tensors of a checkpoint, as its file says."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        return sum(file.get_tensor(key).nbytes for key in file.keys())  # noqa: SIM118 -- it is no mapping


def test_an_onnx_file_counts_as_large_as_it_is(tmp_path: Path) -> None:
    weights = write_onnx(tmp_path / "onnx")
    encoder = load_encoder(ModelSpec("onnx", weights))
    assert weight_bytes(encoder) == next(iter((tmp_path / "onnx").glob("*.onnx"))).stat().st_size


def test_a_tower_counts_its_tensors_and_a_text_tower_once_it_is_open() -> None:
    spec = ModelSpec("siglip", "shipped:siglip-digits", dtype="float32")
    images = weight_bytes(load_encoder(spec))
    load_text_encoder(spec).encode_text(["a"])
    both = weight_bytes(load_encoder(spec))
    stored = bytes_in(SHIPPED / "siglip-digits")
    assert 0 < images < both
    assert both == pytest.approx(stored, rel=0.02)  # but for buffers and the two scalars of the loss


def test_what_has_no_weights_takes_nothing() -> None:
    assert weight_bytes(load_encoder(ModelSpec("fake"))) == 0


def test_the_least_recently_used_model_is_closed(tmp_path: Path) -> None:
    specs = [ModelSpec("dinov2", write_dinov2(tmp_path / name), dtype="float32") for name in "abc"]
    first, second, third = specs
    photo = [picture((200, 30, 40))]
    expected = load_encoder(first).encode(photo)
    one = weight_bytes(load_encoder(first))
    set_memory_budget(2 * one)
    load_encoder(second)
    load_encoder(first)  # so that it is not the one that goes
    load_encoder(third)
    assert [is_open(spec) for spec in specs] == [True, False, True]
    assert load_encoder(second).encode(photo).tolist() == expected.tolist()
    assert [is_open(spec) for spec in specs] == [False, True, True]


def test_who_is_at_work_with_a_model_keeps_it_and_then_it_is_gone(tmp_path: Path) -> None:
    set_memory_budget(1)
    held = load_encoder(ModelSpec("dinov2", write_dinov2(tmp_path / "a"), dtype="float32"))
    load_encoder(ModelSpec("dinov2", write_dinov2(tmp_path / "b"), dtype="float32"))
    assert held.encode([picture((1, 2, 3))]).shape == (1, held.contract.dim)
    gone = weakref.ref(held)
    del held
    gc.collect()
    assert gone() is None


def test_many_threads_may_open_models_at_once() -> None:
    set_memory_budget(10_000)
    specs = [ModelSpec("fake", f"{i}") for i in range(200)]
    with ThreadPoolExecutor(16) as pool:
        assert len(list(pool.map(load_encoder, specs))) == 200


def test_one_that_is_larger_than_the_budget_is_open_all_the_same(tmp_path: Path) -> None:
    spec = ModelSpec("dinov2", write_dinov2(tmp_path / "a"), dtype="float32")
    set_memory_budget(1)
    assert load_encoder(spec) is load_encoder(spec)
