"""Opening models: what is refused, in which words, and how often it is tried."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoConfig, SiglipVisionModel

import lmm_classifier
from lmm_classifier import registry
from lmm_classifier.errors import ConfigError, ModelError, ModelUnavailableError
from lmm_classifier.models import loading
from lmm_classifier.models.loading import load_chooser, load_encoder
from lmm_classifier.models.spec import ModelSpec

Noise = Callable[..., Image.Image]
Copy = Callable[[Path], Path]
HUB_ID = "google/siglip-so400m-patch14-384"
UNAVAILABLE = (
    f"model '{HUB_ID}' is neither on this machine nor reachable: connect once so that it can be downloaded, "
    "or set `weights` to a local folder ("
)


class TestNotOnThisMachine:
    @pytest.fixture(autouse=True)
    def empty_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def test_is_one_line_that_says_what_to_do(self, said: Callable[[], str]) -> None:
        with pytest.raises(ModelUnavailableError) as caught:
            load_encoder(ModelSpec("siglip", HUB_ID))
        assert str(caught.value).startswith(UNAVAILABLE)
        assert said() == ""

    def test_is_the_same_for_the_default_weights(self) -> None:
        with pytest.raises(ModelUnavailableError, match=HUB_ID):
            load_encoder(ModelSpec("siglip"))
        with pytest.raises(ModelUnavailableError, match="Qwen/Qwen2-VL-7B-Instruct"):
            load_chooser(ModelSpec("qwen-vl"))

    def test_is_not_tried_again_at_once_but_later(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = count_calls(monkeypatch, AutoConfig, "from_pretrained")
        first, second = (failure(ModelSpec("siglip", HUB_ID)) for _ in range(2))
        assert str(first) == str(second)
        assert str(first).startswith(UNAVAILABLE)
        assert len(calls) == 1
        failure(ModelSpec("siglip", HUB_ID, revision="v2"))  # another spec is another try
        assert len(calls) == 2
        assert loading.RETRY_AFTER_S == 60
        monkeypatch.setattr(loading, "RETRY_AFTER_S", 0)
        failure(ModelSpec("siglip", HUB_ID))
        assert len(calls) == 3

    def test_in_a_process_of_its_own(self, tmp_path: Path) -> None:
        script = (
            "from lmm_classifier.errors import ModelUnavailableError\n"
            "from lmm_classifier.models.loading import load_encoder\n"
            "from lmm_classifier.models.spec import ModelSpec\n"
            f"try: load_encoder(ModelSpec('siglip', {HUB_ID!r}))\n"
            "except ModelUnavailableError as error: print(error)"
        )
        environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
        environment.pop("HF_HUB_CACHE", None)
        result = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        assert result.stdout.startswith(UNAVAILABLE)
        assert (result.stdout.count("\n"), result.stderr) == (1, "")


class TestWrongPlace:
    @pytest.mark.parametrize("weights", ["./nowhere", "../nowhere", "/nowhere/at/all", "~/nowhere-at-all"])
    def test_a_missing_folder(self, weights: str) -> None:
        error = failure(ModelSpec("siglip", weights))
        assert isinstance(error, ModelUnavailableError)
        assert str(error) == f"model folder {weights!r} does not exist; check `weights`"

    @pytest.mark.parametrize(
        "weights",
        [
            "shipped:nonsense",
            "shipped:",
            "shipped:..",
            "shipped:.",
            "shipped:/",
            "shipped:../index",
            "shipped:\0",
        ],
    )
    def test_a_checkpoint_that_is_not_shipped(self, weights: str) -> None:
        error = failure(ModelSpec("siglip", weights))
        assert isinstance(error, ModelUnavailableError)
        assert str(error).startswith(f"no shipped checkpoint {weights!r}; shipped are ")

    def test_a_path_out_of_the_shipped_ones_to_a_real_checkpoint(self, siglip_folder: Path) -> None:
        shipped = Path(lmm_classifier.__file__).parent / "checkpoints"
        escape = f"shipped:{os.path.relpath(siglip_folder, shipped)}"
        assert escape.startswith("shipped:../")
        assert "no shipped checkpoint" in str(failure(ModelSpec("siglip", escape)))
        assert "no shipped checkpoint" in str(failure(ModelSpec("siglip", f"shipped:{siglip_folder}")))

    @pytest.mark.parametrize("weights", ["~no-such-user-here/model", "no blanks/allowed", "a/b/c/d", "nul\0"])
    def test_a_name_that_is_none(self, weights: str) -> None:
        assert repr(weights) in str(failure(ModelSpec("siglip", weights)))


class TestDamaged:
    def test_an_empty_folder_is_not_called_unreachable(self, tmp_path: Path) -> None:
        error = failure(ModelSpec("siglip", str(tmp_path)))
        assert not isinstance(error, ModelUnavailableError)
        assert f"model '{tmp_path}' cannot be opened as 'siglip'" in str(error)

    @pytest.mark.parametrize("spoilt", [b"", b"\xff" * 64, b"\x08\0\0\0\0\0\0\0{}      ", "half"])
    def test_weights(self, siglip_folder: Path, edited: Copy, spoilt: bytes | str) -> None:
        path = edited(siglip_folder) / "model.safetensors"
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] if isinstance(spoilt, str) else spoilt)
        assert str(path.parent) in str(failure(ModelSpec("siglip", str(path.parent))))

    @pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
    @pytest.mark.parametrize("content", ["", "[]", "{", "null", "\ufffd", "[" * 100_000])
    def test_json(self, siglip_folder: Path, edited: Copy, name: str, content: str) -> None:
        folder = edited(siglip_folder)
        (folder / name).write_text(content, encoding="utf-8")
        assert str(folder) in str(failure(ModelSpec("siglip", str(folder))))

    @pytest.mark.parametrize(
        ("name", "settings"),
        [
            ("config.json", {"model_type": "no-such-model"}),
            ("config.json", {"dtype": []}),
            ("config.json", {"text_config": "x"}),
            ("config.json", {"vision_config": {"patch_size": 0}}),
            ("config.json", {"vision_config": {"hidden_size": "wide"}}),
            ("config.json", {"vision_config": {"hidden_size": 33, "num_attention_heads": 2}}),
            ("preprocessor_config.json", {"image_processor_type": 0}),
            ("preprocessor_config.json", {"image_processor_type": "NoSuchProcessor"}),
            ("preprocessor_config.json", {"size": []}),
        ],
    )
    @pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
    def test_settings(
        self, siglip_folder: Path, edited: Copy, name: str, settings: dict[str, object]
    ) -> None:
        """Each made transformers raise an exception of another class."""
        folder = edited(siglip_folder)
        change(folder / name, **settings)
        assert str(folder) in str(failure(ModelSpec("siglip", str(folder))))


class TestWhateverIsRaisedWhileOpening:
    """A model of any package: its error is one of ours, so that retrieval's answer stands."""

    @pytest.mark.parametrize(
        ("raised", "kind", "said"),
        [
            (FileNotFoundError(2, "No such file", "acme/x"), ModelUnavailableError, "FileNotFoundError:"),
            (ConnectionResetError("the hub hung up"), ModelUnavailableError, "the hub hung up"),
            (AttributeError("no attribute 'use_head'"), ModelError, "AttributeError: no attribute"),
            (KeyError("two\nlines"), ModelError, "KeyError:"),
        ],
    )
    def test_is_an_error_of_ours(
        self, raised: Exception, kind: type[ModelError], said: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(spec: ModelSpec) -> None:
            raise raised

        monkeypatch.setattr(registry, "resolve", lambda *_: refuse)
        for family in ("qwen-vl", "siglip"):
            error = failure(ModelSpec(family))
            assert type(error) is kind
            assert f"'{family}' cannot be opened: " in str(error)
            assert said in str(error)
            assert error.__cause__ is raised


class TestForeignCodeIsNeverRun:
    @pytest.fixture
    def canary(self, tmp_path: Path) -> Path:
        return tmp_path / "canary"

    @pytest.fixture
    def evil(self, siglip_folder: Path, edited: Copy, canary: Path) -> Path:
        folder = edited(siglip_folder)
        write_evil(folder, canary)
        return folder

    @pytest.mark.parametrize(
        ("name", "kind", "auto_class"),
        [
            ("config.json", "model_type", "AutoConfig"),
            ("preprocessor_config.json", "image_processor_type", "AutoImageProcessor"),
        ],
    )
    def test_of_an_unknown_class(
        self, evil: Path, canary: Path, name: str, kind: str, auto_class: str
    ) -> None:
        change(evil / name, **{kind: "Evil", "auto_map": {auto_class: "evil.Evil", "AutoModel": "evil.Evil"}})
        assert str(evil) in str(failure(ModelSpec("siglip", str(evil))))
        assert not canary.exists()

    def test_beside_a_known_class(self, evil: Path, canary: Path, siglip_folder: Path, noise: Noise) -> None:
        """Then the class of transformers serves, as if the code were not there."""
        change(evil / "config.json", auto_map={"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"})
        change(evil / "preprocessor_config.json", auto_map={"AutoImageProcessor": "evil.Evil"})
        vectors = [
            load_encoder(ModelSpec("siglip", str(folder))).encode([noise(9, 9)])
            for folder in (evil, siglip_folder)
        ]
        np.testing.assert_array_equal(*vectors)
        assert not canary.exists()

    @pytest.mark.parametrize("name", ["config.json", "processor_config.json", "tokenizer_config.json", None])
    def test_of_a_chooser(
        self, qwen_folders: dict[str, Path], edited: Copy, canary: Path, name: str | None
    ) -> None:
        folder = edited(qwen_folders["qwen2_vl"])
        write_evil(folder, canary)
        write_evil(folder / "custom_generate", canary, "generate.py")
        if name is not None:
            classes = ("AutoConfig", "AutoModelForImageTextToText", "AutoProcessor", "AutoTokenizer")
            change(
                folder / name,
                model_type="evil",
                processor_class="Evil",
                tokenizer_class="Evil",
                auto_map=dict.fromkeys(classes, "evil.Evil"),
            )
        try:
            load_chooser(ModelSpec("qwen-vl", str(folder)))
        except ModelError:
            assert name is not None
        assert not canary.exists()

    @pytest.mark.parametrize("index", [False, True])
    def test_in_pickled_weights(self, evil: Path, canary: Path, index: bool) -> None:
        (evil / "model.safetensors").unlink()
        (evil / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(canary), protocol=2))
        if index:  # a safetensors index that names a pickle
            weight_map = {"vision_model.post_layernorm.bias": "pytorch_model.bin"}
            (evil / "model.safetensors.index.json").write_text(
                json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8"
            )
        error = failure(ModelSpec("siglip", str(evil)))
        assert not isinstance(error, ModelUnavailableError)
        assert str(evil) in str(error)
        assert not canary.exists()

    def test_in_weights_that_might_be_pickled(self, siglip_folder: Path, edited: Copy) -> None:
        """Harmless or not, a pickle is not even read."""
        folder = edited(siglip_folder)
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        error = failure(ModelSpec("siglip", str(folder)))
        assert not isinstance(error, ModelUnavailableError)

    def test_though_the_bomb_is_a_real_one(self, canary: Path) -> None:
        pickle.loads(pickle.dumps(Bomb(canary)))  # noqa: S301
        assert canary.exists()


class TestOneModelPerSpec:
    def test_two_threads_open_it_once(self, siglip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = count_calls(monkeypatch, SiglipVisionModel, "from_pretrained", seconds=0.1)
        spec, start, loaded = ModelSpec("siglip", str(siglip_folder)), threading.Barrier(4), []

        def load() -> None:
            start.wait()
            loaded.append(load_encoder(spec))

        threads = [threading.Thread(target=load) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(calls) == 1
        assert len(loaded) == 4
        assert all(encoder is loaded[0] for encoder in loaded)

    def test_another_spec_is_another_model(self) -> None:
        one, same, other = (load_encoder(ModelSpec("fake", weights)) for weights in ("a", "a", "b"))
        assert one is same
        assert one is not other


class TestSpec:
    @pytest.mark.parametrize(
        ("load", "family", "message"),
        [
            (load_encoder, "siglp", "unknown encoder 'siglp'; did you mean 'siglip'?"),
            (load_encoder, "Descriptor", "unknown encoder 'Descriptor'; did you mean 'descriptor'?"),
            (load_chooser, "qwen_vl", "unknown chooser 'qwen_vl'; did you mean 'qwen-vl'?"),
        ],
    )
    def test_a_misspelt_family_is_set_right(self, load: Any, family: str, message: str) -> None:
        with pytest.raises(ConfigError) as caught:
            load(ModelSpec(family))
        assert str(caught.value) == message

    def test_an_unknown_family_is_answered_with_the_known_ones(self) -> None:
        with pytest.raises(
            ConfigError, match="unknown encoder 'xyz'; known: siglip, clip, .*, descriptor, fake"
        ):
            load_encoder(ModelSpec("xyz"))
        with pytest.raises(ConfigError, match="unknown chooser 'os:system'"):
            load_chooser(ModelSpec("os:system"))

    @pytest.mark.parametrize(
        "options", [{"device": "gpu"}, {"device": "cuda:x"}, {"dtype": "int8"}, {"size": 1}]
    )
    def test_options_are_checked_before_anything_is_opened(self, options: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            ModelSpec("siglip", **options)

    @pytest.mark.parametrize("device", ["cuda", "cuda:0"])
    def test_cuda_where_there_is_none(
        self, siglip_folder: Path, device: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
        error = failure(ModelSpec("siglip", str(siglip_folder), device=device))
        assert str(error) == f"device {device!r} is not available here; use device: auto"

    def test_a_cuda_device_beyond_the_last(self, siglip_folder: Path) -> None:
        device = f"cuda:{torch.cuda.device_count()}"
        assert "is not available here" in str(failure(ModelSpec("siglip", str(siglip_folder), device=device)))


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> Any:
        return Path.touch, (self._canary,)


def write_evil(folder: Path, canary: Path, name: str = "evil.py") -> None:
    folder.mkdir(exist_ok=True)
    code = f"from pathlib import Path\nPath({str(canary)!r}).touch()\n\nclass Evil:\n    pass\n"
    (folder / name).write_text(code, encoding="utf-8")


def change(path: Path, **settings: object) -> None:
    old = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(old | settings), encoding="utf-8")


def failure(spec: ModelSpec) -> ModelError:
    """The error of opening the spec: one line."""
    with pytest.raises(ModelError) as caught:
        (load_chooser if spec.family == "qwen-vl" else load_encoder)(spec)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 450  # some of transformers' list every architecture there is
    return caught.value


def count_calls(
    monkeypatch: pytest.MonkeyPatch, owner: type[Any], name: str, seconds: float = 0
) -> list[object]:
    """Record the calls of a class method, which may be slowed down."""
    original, calls = getattr(owner, name), []

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        time.sleep(seconds)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, counted)
    return calls
