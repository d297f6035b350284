"""Large models: where their weights go, what is said where they fit nowhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import calculate_maximum_sizes, convert_file_size_to_int
from pydantic import ValidationError
from transformers import AutoModelForImageTextToText, Qwen2VLConfig

from lmm_classifier.errors import ModelError, ModelOutOfMemoryError
from lmm_classifier.models.captioning import load_captioner
from lmm_classifier.models.loading import load_chooser, load_encoder
from lmm_classifier.models.runtime import placement
from lmm_classifier.models.runtime.options import PLACEMENT
from lmm_classifier.models.runtime.placement import Place, empty_model, entry_device, plan_for
from lmm_classifier.models.spec import ModelSpec
from refusals import refused

Free = Callable[[Mapping[Place, int]], None]
LAYERS = 16


@pytest.fixture(scope="module")
def config() -> Qwen2VLConfig:
    text = {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 2000,
        "bos_token_id": None,
        "eos_token_id": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [8, 12, 12]},
    }
    vision = {"depth": 4, "embed_dim": 128, "hidden_size": 256, "num_heads": 4}
    return Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Free:
    """Makes a machine of so many free bytes per device."""

    def make(there: Mapping[Place, int]) -> None:
        monkeypatch.setattr(placement, "free_memory", lambda spec: dict(there))

    return make


def used(empty: Any, plan: Mapping[str, Place]) -> dict[Place, int]:
    """Bytes of the parameters per device."""
    total: dict[Place, int] = {}
    for name, parameter in empty.named_parameters():
        [place] = {place for part, place in plan.items() if f"{name}.".startswith(f"{part}." if part else "")}
        total[place] = total.get(place, 0) + parameter.nbytes
    return total


class TestPlan:
    @pytest.fixture
    def plan(self, config: Qwen2VLConfig, free: Free) -> Callable[..., dict[Place, int] | None]:
        def make(shares: Mapping[Place, float], **options: Any) -> dict[Place, int] | None:
            """Bytes per device of a model on a machine that has these multiples of what it needs."""
            spec = ModelSpec("qwen-vl", **{"dtype": "float32", **options})
            empty = empty_model(AutoModelForImageTextToText, spec, "a/b", config)
            needed, _ = calculate_maximum_sizes(empty)
            there = {place: int(share * needed) for place, share in shares.items()}
            free(there)
            found = plan_for(empty, spec, "a/b")
            if found is None:
                return None
            total = used(empty, found)
            assert all(size <= there[place] for place, size in total.items() if place != "disk")
            layers = [name for name in found if ".layers." in name]
            assert all(name.count(".") == 3 for name in layers)  # none is torn apart
            return total

        return make

    def test_one_gpu_that_is_large_enough_takes_it_all(self, plan: Any) -> None:
        assert plan({0: 1.2, 1: 1.2, "cpu": 5}) is None

    def test_two_gpus_that_are_too_small_each_share_it(self, plan: Any) -> None:
        assert plan({0: 0.8, 1: 0.8, "cpu": 5}).keys() == {0, 1}

    def test_a_device_that_is_named_is_the_only_one(self, plan: Any) -> None:
        with pytest.raises(ModelOutOfMemoryError):
            plan({0: 0.8, 1: 0.8, "cpu": 5}, device="cuda")

    def test_the_processors_memory_is_used_where_that_is_asked_for_alone(self, plan: Any) -> None:
        with pytest.raises(ModelOutOfMemoryError):
            plan({0: 0.5, 1: 0.3, "cpu": 5})
        assert plan({0: 0.5, 1: 0.3, "cpu": 5}, device_map="auto").keys() == {0, 1, "cpu"}

    def test_the_disk_is_used_where_there_is_a_folder_alone(self, plan: Any) -> None:
        with pytest.raises(ModelOutOfMemoryError):
            plan({0: 0.4, "cpu": 0.4}, device_map="auto")
        assert plan({0: 0.4, "cpu": 0.4}, device_map="auto", offload_folder="x").keys() == {0, "cpu", "disk"}
        assert plan({"cpu": 0.4}, device_map="auto", offload_folder="x").keys() == {"cpu", "disk"}

    @pytest.mark.parametrize("how", ["auto", "balanced", "sequential"])
    def test_gpus_are_filled_evenly_or_one_after_the_other(self, plan: Any, how: str) -> None:
        assert plan({0: 5, 1: 5, "cpu": 5}, device_map=how).keys() == ({0} if how == "sequential" else {0, 1})

    def test_a_bound_is_kept_and_what_it_does_not_name_is_left_alone(self, plan: Any) -> None:
        assert plan({0: 5, 1: 5, "cpu": 5}, max_memory={1: "2GiB"}).keys() == {1}
        assert plan({0: 5, "cpu": 5}, max_memory={"cpu": "2GiB"}, device_map="auto").keys() == {"cpu"}
        mib = 2**20
        found = plan({0: 5, 1: 5, "cpu": 5}, max_memory={0: 30 * mib, 1: "40MiB"})
        assert found.keys() == {0, 1}
        assert found[0] <= 30 * mib
        assert found[1] <= 40 * mib

    def test_tied_weights_count_once(self, config: Qwen2VLConfig) -> None:
        tied = type(config)(**{**config.to_dict(), "tie_word_embeddings": True})
        sizes = [
            calculate_maximum_sizes(
                empty_model(AutoModelForImageTextToText, ModelSpec("qwen-vl", dtype="float32"), "a/b", some)
            )[0]
            for some in (config, tied)
        ]
        assert sizes[0] - sizes[1] == 2000 * 256 * 4


class TestRefuses:
    @pytest.mark.parametrize(
        ("there", "options", "says"),
        [
            (
                {"cpu": 40},
                {},
                "needs 45.1 MiB for its weights in float32, 2.3 MiB of it in one piece, and 40.0 MiB is free "
                "in the processor's memory: use dtype: bfloat16, which needs 22.5 MiB, device_map: auto with "
                "an offload_folder or a smaller model",
            ),
            (
                {0: 40, "cpu": 90},
                {},
                "40.0 MiB is free on GPU 0, 90.0 MiB is free in the processor's memory: use dtype: bfloat16, "
                "which needs 22.5 MiB, device_map: auto or a smaller model",
            ),
            (
                {0: 20, 1: 10, "cpu": 90},
                {"dtype": "bfloat16"},
                "22.5 MiB for its weights in bfloat16, 1.1 MiB of it in one piece, and 20.0 MiB is free on "
                "GPU 0, 10.0 MiB is free on GPU 1, 90.0 MiB is free in the processor's memory: use "
                "device_map: auto or a smaller model",
            ),
            (
                {0: 10, "cpu": 10},
                {"device_map": "auto"},
                "10.0 MiB is free in the processor's memory: use an offload_folder or a smaller model",
            ),
            (
                {"cpu": 1},
                {"device_map": "auto", "offload_folder": "x"},
                "1.0 MiB is free in the processor's memory: use a smaller model",
            ),
            (
                {0: 100, "cpu": 100},
                {"max_memory": {0: "10MiB"}},
                "10.0 MiB is allowed on GPU 0: use device_map: auto with an offload_folder, a larger "
                "max_memory or a smaller model",
            ),
        ],
    )
    def test_in_one_line_what_is_needed_what_there_is_and_what_would_fit(
        self, config: Qwen2VLConfig, free: Free, there: dict[Place, int], options: dict[str, Any], says: str
    ) -> None:
        free({place: size * 2**20 for place, size in there.items()})
        spec = ModelSpec("qwen-vl", **{"dtype": "float32", **options})
        empty = empty_model(AutoModelForImageTextToText, spec, "a/b", config)
        with pytest.raises(ModelOutOfMemoryError) as caught:
            plan_for(empty, spec, "a/b")
        assert str(caught.value).startswith("model 'a/b' needs ")
        assert str(caught.value).endswith(says)

    @pytest.mark.parametrize("load", [load_chooser, load_captioner])
    def test_before_the_weights_are_read(
        self, folder: Path, load: Any, free: Free, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        free({"cpu": 1000})
        monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", None)
        family = "qwen-vl" if load is load_chooser else "image-text-to-text"
        spec = ModelSpec(family, str(folder), dtype="float32")
        assert refused(load, spec, "1.0 KiB is free in the processor's memory: use a smaller model")

    def test_a_bound_of_a_device_that_is_not_here(self, folder: Path) -> None:
        spec = ModelSpec("qwen-vl", str(folder), device="cpu", max_memory={3: "1GiB", "cpu": "1GiB"})
        assert refused(
            load_chooser, spec, "max_memory names GPU 3, and it may run on cpu here; leave that out"
        )

    @pytest.mark.parametrize(
        "error", [torch.OutOfMemoryError("CUDA out of memory. Tried\nto"), MemoryError()]
    )
    @pytest.mark.parametrize("device_map", [None, "auto"])
    def test_what_runs_out_of_memory_nonetheless(
        self, folder: Path, error: Exception, device_map: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", fails)
        spec = ModelSpec("qwen-vl", str(folder), device="cpu", device_map=device_map)
        assert refused(
            load_chooser, spec, "memory ran out while model .* was opened: close what else uses it"
        )
        with pytest.raises(ModelOutOfMemoryError):
            load_chooser(spec)

    @pytest.mark.parametrize("options", [{"device_map": "auto"}, {"max_memory": {"cpu": "1GiB"}}])
    def test_to_spread_a_quantised_model(self, folder: Path, options: dict[str, Any]) -> None:
        quantised = SimpleNamespace(quantization_config={"quant_method": "fp8"})
        spec = ModelSpec("qwen-vl", str(folder), **options)
        with pytest.raises(ModelError, match="is quantised: .* leave device_map and max_memory out"):
            placement.placed_model(AutoModelForImageTextToText, spec, "a/b", quantised)

    @pytest.mark.parametrize(
        ("load", "family"),
        [
            (load_encoder, "siglip"),
            (load_encoder, "descriptor"),
            (load_chooser, "fake"),
            (load_chooser, "openai_api"),
            (load_captioner, "blip"),
        ],
    )
    def test_for_other_families(self, load: Any, family: str) -> None:
        for options, option in (
            ({"device_map": "auto"}, "device_map"),
            ({"max_memory": {"cpu": 5}}, "max_memory"),
            ({"device_map": "auto", "offload_folder": "x"}, "device_map"),
        ):
            assert refused(load, ModelSpec(family, **options), f"'{family}' is not .*; leave `{option}` out")
        assert option in PLACEMENT


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ({"a": 1, "b": 0, "c": "cpu"}, "cuda:1"),
        ({"a": "cpu", "b": "disk", "c": 0}, "cuda:0"),
        ({"a": "disk", "b": "cpu"}, "cpu"),
        ({"": torch.device("cuda:2")}, "cuda:2"),
        ({"": "mps"}, "mps"),
    ],
)
def test_inputs_go_where_the_first_layer_that_is_computed_is(places: dict[str, Any], expected: str) -> None:
    model = SimpleNamespace(hf_device_map=places, device=torch.device("meta"))
    assert entry_device(model) == torch.device(expected)
    assert entry_device(SimpleNamespace(device=torch.device("cpu"))) == torch.device("cpu")


class TestWhatIsFree:
    """Of a machine with two GPUs, on which closed models have left 5 bytes with torch."""

    @pytest.fixture(autouse=True)
    def machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(placement, "device_of", lambda spec: torch.device(spec.device))
        monkeypatch.setattr(placement, "get_max_memory", lambda: {0: 100, 1: 200, "cpu": 300})
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: ((100, 200)[index], 1000))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda index: 8)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda index: 3)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)

    @pytest.mark.parametrize(
        ("spec", "expected"),
        [
            (ModelSpec("qwen-vl", device="cuda:0"), {0: 105}),
            (ModelSpec("qwen-vl", device="cuda"), {1: 205}),
            (ModelSpec("qwen-vl", device="cuda", device_map="auto"), {0: 105, 1: 205, "cpu": 300}),
        ],
    )
    def test_a_gpu_that_is_not_asked_for_is_left_alone(
        self, spec: ModelSpec, expected: dict[Place, int]
    ) -> None:
        assert placement.free_memory(spec) == expected

    def test_of_all_where_the_device_is_left_open(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(placement, "device_of", lambda spec: torch.device("cuda"))
        assert placement.free_memory(ModelSpec("qwen-vl")) == {0: 105, 1: 205, "cpu": 300}

    @pytest.mark.parametrize("options", [{}, {"device_map": "auto"}])
    def test_on_the_processor_no_gpu_is_asked(self, options: dict[str, Any]) -> None:
        free = placement.free_memory(ModelSpec("qwen-vl", device="cpu", **options))
        assert list(free) == ["cpu"]
        assert free["cpu"] > 2**20


class TestMaxMemory:
    def test_is_the_same_however_it_is_written(self) -> None:
        specs = {
            ModelSpec("qwen-vl", max_memory=limits)
            for limits in ({0: "20GiB", "cpu": 5}, {"cpu": 5, "0": "20GiB"}, [["0", "20GiB"], ["cpu", 5]])
        }
        [spec] = specs
        assert spec.max_memory == ((0, "20GiB"), ("cpu", 5))

    @pytest.mark.parametrize("size", ["20GiB", "1.5MiB", "512KiB", "20GB", "3 MB", "7KB", 0, 12345])
    def test_takes_sizes_that_accelerate_takes(self, size: Any) -> None:
        assert ModelSpec("qwen-vl", max_memory={"cpu": size}).max_memory == (("cpu", size),)
        assert convert_file_size_to_int(size) >= 0

    @pytest.mark.parametrize(
        ("limits", "says"),
        [
            ({0: "20"}, "'20' of 0 must be a size such as 20GiB"),
            ({0: "20Gb"}, "'20Gb' of 0 must be"),
            ({0: -1}, "-1 of 0 must be"),
            ({0: True}, "True of 0 must be"),
            ({0: 1.5}, "1.5 of 0 must be"),
            ({"gpu": "1GiB"}, "'gpu' must be the number of a GPU, cpu or mps"),
            ({-1: "1GiB"}, "-1 must be the number of a GPU, cpu or mps"),
            ({0: "1GiB", "0": "2GiB"}, "'0' must be .* each once"),
            ("20GiB", "must map devices to sizes, such as {0: 20GiB, cpu: 30GiB}, got '20GiB'"),
            ({}, "must name a device"),
        ],
    )
    def test_says_what_is_wrong(self, limits: Any, says: str) -> None:
        with pytest.raises(ValidationError, match=says):
            ModelSpec("qwen-vl", max_memory=limits)
