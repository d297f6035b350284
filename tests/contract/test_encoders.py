"""One battery over every registered encoder, built-in or installed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from PIL import Image

from lmm_classifier import registry
from lmm_classifier.models import loading
from lmm_classifier.models.base import Encoder, TextEncoder
from lmm_classifier.models.loading import load_encoder
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.types import EncoderContract
from tiny_models import WRITERS

Opened = Callable[[], Encoder]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Encoder family -> weights: a tiny checkpoint, or the default of a family that needs none."""

    @cache
    def weights(family: str) -> str:
        return WRITERS[family](tmp_path_factory.mktemp("tiny") / family) if family in WRITERS else ""

    return weights


@pytest.fixture(params=registry.names("encoder"))
def opened(
    request: pytest.FixtureRequest, written: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> Opened:
    """Opens the encoder anew."""

    def open_again() -> Encoder:
        loading.reset()
        return load_encoder(ModelSpec(request.param, written(request.param), dtype="float32"))

    return open_again


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    """Photos of several sizes and contents; none two alike."""
    random = np.random.default_rng(0)
    sizes = [(64, 48), (48, 64), (20, 20), (7, 300), (500, 375), (1, 1), (33, 31), (224, 224)]
    return [Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


class TestEveryEncoder:
    def test_gives_a_unit_float32_row_per_image(self, opened: Opened, images: list[Image.Image]) -> None:
        encoder = opened()
        vectors = encoder.encode(images)
        assert vectors.dtype == np.float32
        assert vectors.shape == (len(images), encoder.contract.dim)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)

    def test_of_nothing_makes_nothing(self, opened: Opened) -> None:
        encoder = opened()
        vectors = encoder.encode([])
        assert (vectors.shape, vectors.dtype) == ((0, encoder.contract.dim), np.float32)

    def test_vectors_do_not_depend_on_the_batch(self, opened: Opened, images: list[Image.Image]) -> None:
        encoder = opened()
        alone = np.concatenate([encoder.encode([image]) for image in images])
        np.testing.assert_allclose(encoder.encode(images), alone, atol=2e-6)

    def test_keeps_the_order_and_leaves_images_alone(self, opened: Opened, images: list[Image.Image]) -> None:
        encoder, before = opened(), [image.tobytes() for image in images]
        vectors = encoder.encode(images)
        np.testing.assert_allclose(encoder.encode(images[::-1]), vectors[::-1], atol=2e-6)
        assert (vectors @ vectors.T)[np.triu_indices(len(images), 1)].min() < 0.999  # they do differ
        assert [image.tobytes() for image in images] == before

    def test_is_deterministic_also_when_opened_again(self, opened: Opened, images: list[Image.Image]) -> None:
        first, again = opened(), opened()
        assert first is not again
        vectors = first.encode(images)
        np.testing.assert_array_equal(first.encode(images), vectors)
        np.testing.assert_array_equal(again.encode(images), vectors)
        assert first.contract == again.contract

    def test_has_a_contract_that_names_it(self, opened: Opened, request: pytest.FixtureRequest) -> None:
        contract = opened().contract
        assert isinstance(contract, EncoderContract)
        assert contract.name in request.node.name
        assert contract.dim > 0
        assert contract.dtype == "float32"
        assert re.fullmatch(r"[0-9a-f]{16}", contract.fingerprint)
        assert re.fullmatch(r"([0-9a-f]{64})?", contract.weights_digest)
        json.dumps(contract.preprocessing)

    def test_that_takes_texts_of_nothing_makes_nothing(self, opened: Opened) -> None:
        encoder = opened()
        if isinstance(encoder, TextEncoder):
            assert encoder.encode_text([]).shape == (0, encoder.contract.dim)


def test_every_builtin_has_a_file_and_a_line_in_the_readme(request: pytest.FixtureRequest) -> None:
    readme = (request.config.rootpath / "README.md").read_text(encoding="utf-8")
    for family in registry.BUILTINS["encoder"]:
        assert family == "fake" or f"| `{family}` |" in readme, family


def test_settings_know_which_builtins_take_no_texts() -> None:
    classes = {family: registry.resolve("encoder", family) for family in registry.BUILTINS["encoder"]}
    for family, cls in classes.items():
        known = registry.entry("encoder", family)
        assert known is not None
        assert known.takes_texts == hasattr(cls, "encode_text"), family


def test_fingerprints_are_all_different(written: Callable[[str], str]) -> None:
    families = tuple(registry.BUILTINS["encoder"])
    fingerprints = {
        load_encoder(ModelSpec(family, written(family))).contract.fingerprint for family in families
    }
    assert len(fingerprints) == len(families)
