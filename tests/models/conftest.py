"""Tiny random checkpoints of the real architectures, written once per session with `save_pretrained`."""

from __future__ import annotations

import io
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from lmm_classifier.models import loading
from lmm_classifier.models.base import Chooser
from lmm_classifier.models.loading import load_chooser
from lmm_classifier.models.spec import ModelSpec
from naive_qwen import MODELS
from tiny_models import TEXT_TOWER, VISION_TOWER, WRITERS, randomised, write_siglip, write_siglip2

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_ROUND = (
    "<|im_start|>{{ message['role'] }}\n"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As published: Qwen2-VL and Qwen2.5-VL open with a system turn, Qwen3-VL does not.
WITH_SYSTEM = (
    "{% for message in messages %}{% if loop.first %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}" + _ROUND
)
WITHOUT_SYSTEM = "{% for message in messages %}" + _ROUND


@pytest.fixture(autouse=True)
def no_model_from_another_test() -> None:
    """Models are kept for the life of the process; a test starts with none."""
    loading.reset()


@pytest.fixture
def said(capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """What the libraries logged and anyone printed so far; their log handlers keep an older stderr."""
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub", "accelerate")]
    for logger in loggers:
        logger.addHandler(handler)
    yield lambda: log.getvalue() + "".join(capfd.readouterr())
    for logger in loggers:
        logger.removeHandler(handler)


@pytest.fixture(scope="session")
def noise() -> Callable[..., Image.Image]:
    def make(width: int, height: int, seed: int = 0) -> Image.Image:
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return Image.fromarray(pixels)

    return make


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Encoder family -> weights of a tiny checkpoint, written once."""

    @cache
    def written(family: str) -> str:
        return WRITERS[family](tmp_path_factory.mktemp("tiny") / family)

    return written


@pytest.fixture(scope="session")
def siglip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(write_siglip(tmp_path_factory.mktemp("checkpoints") / "siglip"))


@pytest.fixture(scope="session")
def siglip2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(write_siglip2(tmp_path_factory.mktemp("checkpoints") / "siglip2"))


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "clip"
    config = CLIPConfig(text_config=TEXT_TOWER, vision_config=VISION_TOWER, projection_dim=16)
    randomised(CLIPModel(config), 0.15).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def qwen_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model type -> checkpoint, for the three families."""
    root = tmp_path_factory.mktemp("qwen")
    for family in QWEN_FAMILIES:
        processor = qwen_processor(family)
        qwen_model(family, processor.tokenizer).save_pretrained(root / family)
        processor.save_pretrained(root / family)
    return {family: root / family for family in QWEN_FAMILIES}


@pytest.fixture
def edited(tmp_path: Path) -> Callable[[Path], Path]:
    """A copy of a checkpoint that a test may spoil."""

    def copy(folder: Path) -> Path:
        return Path(shutil.copytree(folder, tmp_path / "edited" / folder.name))

    return copy


@dataclass(frozen=True)
class QwenFamily:
    """The classes of one family and what its configuration has of its own."""

    config: type[Any]
    model: type[Any]
    processor: type[Any]
    video_processor: type[Any]
    chat_template: str
    patch: int
    tied: bool
    text: dict[str, Any]
    vision: dict[str, Any]


QWEN_FAMILIES = {
    "qwen2_vl": QwenFamily(
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
        WITH_SYSTEM,
        14,
        True,
        {},
        {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2},
    ),
    "qwen2_5_vl": QwenFamily(
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLVideoProcessor,
        WITH_SYSTEM,
        14,
        False,
        {},
        {
            "depth": 2,
            "hidden_size": 32,
            "out_hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
    ),
    "qwen3_vl": QwenFamily(
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
        WITHOUT_SYSTEM,
        16,
        False,
        {"head_dim": 16},
        {
            "depth": 3,
            "hidden_size": 32,
            "out_hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "num_position_embeddings": 36,
            "deepstack_visual_indexes": [0, 1],
        },
    ),
}


def qwen_processor(family: str) -> Any:
    """Qwen's, with a vocabulary learned from a sentence, and images of 4 to 36 visual tokens."""
    tokenizer = Qwen2Tokenizer(
        eos_token=SPECIAL_TOKENS[2], pad_token=SPECIAL_TOKENS[0], model_max_length=32768
    )
    sentence = "Which label fits the image best? daisy, rose, tulip, oxeye daisy, unknown. The label only."
    trainer = BpeTrainer(
        vocab_size=340,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.backend_tokenizer.train_from_iterator([sentence] * 3, trainer)
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL_TOKENS[1:])})
    parts = QWEN_FAMILIES[family]
    merged = 2 * parts.patch
    size = {"shortest_edge": 4 * merged**2, "longest_edge": 36 * merged**2}
    return parts.processor(
        Qwen2VLImageProcessor(size=size, patch_size=parts.patch),
        tokenizer,
        parts.video_processor(size=size, patch_size=parts.patch),
        chat_template=parts.chat_template,
    )


def qwen_model(family: str, tokenizer: Any) -> PreTrainedModel:
    parts = QWEN_FAMILIES[family]
    token = tokenizer.convert_tokens_to_ids
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
        "bos_token_id": None,
        "eos_token_id": token("<|im_end|>"),
        "pad_token_id": token("<|endoftext|>"),
        **parts.text,
    }
    config = parts.config(
        text_config=text,
        vision_config={**parts.vision, "patch_size": parts.patch},
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=parts.tied,
    )
    return randomised(parts.model(config), 0.2)


@pytest.fixture(params=list(MODELS))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def folder(family: str, qwen_folders: dict[str, Path]) -> Path:
    return qwen_folders[family]


@pytest.fixture
def chooser(folder: Path) -> Chooser:
    return load_chooser(ModelSpec("qwen-vl", str(folder), dtype="float32"))
