"""Train the shipped Qwen2-VL: `python -m lmm_classifier.checkpoints.train_qwen2_vl [--steps N]`.

It learns one conversation: a photo of a digit, the prompt with some labels, the right label as answer.
Only the answer's tokens count in the loss.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from transformers import (
    BatchFeature,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from lmm_classifier.checkpoints import training
from lmm_classifier.checkpoints.digits import KNOWN_NAMES, DigitScan, picture_of, scans_in
from lmm_classifier.checkpoints.training import known_scans, photos
from lmm_classifier.models.base import Question
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.models.vlm.prompts import DEFAULT_PROMPT, render_prompt
from lmm_classifier.models.vlm.qwen_vl import QwenVLChooser
from lmm_classifier.types import UNKNOWN

_Qwen2VL = Qwen2VLForConditionalGeneration
_logger = logging.getLogger(__name__)

OUTPUT = Path(__file__).parent / "qwen2-vl-digits"
_STEPS = 1500
_BATCH = 56  # scans, and CHIMERAS signs without a name
_CHIMERAS = 8
_PEAK_RATE = 1.5e-3
_TRUTH_SHARE = 0.75  # of the scans: their own name is among the labels
_UNKNOWN_SHARE = 0.5  # of the scans whose name is listed: `unknown` is listed too
_LABELS = (2, 5)  # fewest and most names listed
IGNORED = -100  # what torch's cross entropy leaves out
_PIXELS = 56 * 56  # px: 4x4 patches of 14, merged to 4 visual tokens
END = "<|im_end|>"
# In Qwen2-VL's order. https://huggingface.co/Qwen/Qwen2-VL-2B-Instruct/blob/main/tokenizer_config.json
_NAMES = ("endoftext", "im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad")
_SPECIAL_TOKENS = tuple(f"<|{name}|>" for name in _NAMES)
_SYSTEM = "You are a helpful assistant."
# https://huggingface.co/Qwen/Qwen2-VL-2B-Instruct/blob/main/chat_template.json, wrapped
_CHAT_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    f"<|im_start|>system\n{_SYSTEM}<|im_end|>\n{{% endif %}}<|im_start|>"
    "{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}Picture "
    "{{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}{% if add_vision_id %}Video "
    "{{ video_count.value }}: {% endif %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True, slots=True)
class DigitQuestion:
    """What is asked about one picture, and what the assistant should say."""

    labels: tuple[str, ...]
    answer: str


def _ask(truth: str | None, draw: random.Random) -> DigitQuestion:
    """Draw labels for a scan of `truth` (None: a sign that has no name)."""
    others = [name for name in KNOWN_NAMES if name != truth]
    count = draw.randint(*_LABELS)
    if truth is not None and draw.random() < _TRUTH_SHARE:
        labels = [truth, *draw.sample(others, count - 1)]
        labels += [UNKNOWN] * (draw.random() < _UNKNOWN_SHARE)
        answer = truth
    else:
        labels = [*draw.sample(others, count), UNKNOWN]
        answer = UNKNOWN
    draw.shuffle(labels)
    return DigitQuestion(tuple(labels), answer)


def build_processor() -> Qwen2VLProcessor:
    """Qwen2-VL's processor with a vocabulary learned from the demo's own sentences."""
    size = {"shortest_edge": _PIXELS, "longest_edge": _PIXELS}
    images, videos = Qwen2VLImageProcessor(size=size), Qwen2VLVideoProcessor(size=size)
    return Qwen2VLProcessor(  # type: ignore[no-untyped-call]
        images, _build_tokenizer(), videos, chat_template=_CHAT_TEMPLATE
    )


def _build_tokenizer() -> Qwen2Tokenizer:
    """A byte-level BPE in which each word of the demo is one token, and any other text is its bytes."""
    texts = [_SYSTEM, "system", "user", "assistant", render_prompt(DEFAULT_PROMPT, KNOWN_NAMES)]
    texts += [text for name in (*KNOWN_NAMES, UNKNOWN) for text in (name, f" {name}")]
    trainer = BpeTrainer(
        vocab_size=1024,  # more than it takes to merge every word
        special_tokens=list(_SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    draft = Qwen2Tokenizer().backend_tokenizer
    draft.train_from_iterator(texts, trainer)
    learned = json.loads(draft.to_str())["model"]
    merges: Any = [tuple(merge) for merge in learned["merges"]]  # annotated as strings
    return Qwen2Tokenizer(  # anew: a trained one keeps the token ids from before its training until reloaded
        vocab=learned["vocab"],
        merges=merges,
        eos_token=END,
        pad_token=_SPECIAL_TOKENS[0],
        extra_special_tokens=list(_SPECIAL_TOKENS[1:]),
        model_max_length=1024,
    )


def _build_model(tokenizer: Qwen2Tokenizer) -> _Qwen2VL:
    """An untrained Qwen2-VL of 0.9 million parameters."""
    token = {name: tokenizer.encode(name)[0] for name in _SPECIAL_TOKENS}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        # 16 frequencies of a head of 32, for time, height and width: Qwen2-VL's (16, 24, 24) in proportion
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
        "bos_token_id": None,
        "eos_token_id": token[END],
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {"depth": 2, "embed_dim": 64, "hidden_size": 128, "num_heads": 2, "mlp_ratio": 2}
    config = Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token["<|image_pad|>"],
        video_token_id=token["<|video_pad|>"],
        vision_start_token_id=token["<|vision_start|>"],
        vision_end_token_id=token["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    return _Qwen2VL(config)


def encode(
    processor: Qwen2VLProcessor, ink: Tensor, questions: Sequence[DigitQuestion], answers: Sequence[str]
) -> tuple[BatchFeature, Tensor]:
    """Write out n whole conversations, about ink float32 (n, 1, 64, 64).

    Returns:
        The model's inputs, and its labels: int64 (n, tokens), IGNORED everywhere but at the answer.
    """
    endings = [answer + END for answer in answers]
    texts = [conversation(processor, q) + ending for q, ending in zip(questions, endings, strict=True)]
    inputs = processor(
        text=texts, images=photos(ink), padding=True, padding_side="right", return_tensors="pt"
    )
    lengths = inputs["attention_mask"].sum(dim=1).tolist()
    labels = torch.full_like(inputs["input_ids"], IGNORED)
    for row, (length, ending) in enumerate(zip(lengths, endings, strict=True)):
        start = length - len(processor.tokenizer(ending)["input_ids"])
        labels[row, start:length] = inputs["input_ids"][row, start:length]
    return inputs, labels


def conversation(processor: Qwen2VLProcessor, question: DigitQuestion) -> str:
    """The chat up to the point where the assistant answers."""
    prompt = {"type": "text", "text": render_prompt(DEFAULT_PROMPT, question.labels)}
    chat: Any = [{"role": "user", "content": [{"type": "image"}, prompt]}]  # annotated for text only
    text: str = processor.apply_chat_template(chat, add_generation_prompt=True)
    return text


def choice_accuracy(folder: Path, scans: Sequence[DigitScan], seed: int) -> float:
    """Share of scans whose own name is the likeliest of three, the others drawn at random.

    Asked of the saved model through the chooser that the classifier uses.
    """
    draw = random.Random(seed)  # noqa: S311
    questions = []
    for scan in scans:
        labels = [scan.name, *draw.sample([name for name in KNOWN_NAMES if name != scan.name], 2)]
        draw.shuffle(labels)
        picture = picture_of(scan.pixels).convert("RGB")
        questions.append(Question(picture, render_prompt(DEFAULT_PROMPT, labels), tuple(labels)))
    chooser = QwenVLChooser(ModelSpec("qwen-vl", str(folder.absolute()), dtype="float32"))
    rated = chooser.log_likelihoods(questions, batch_size=_BATCH)
    right = [q.options[r.argmax()] == scan.name for q, r, scan in zip(questions, rated, scans, strict=True)]
    return sum(right) / len(right)


def train_qwen2_vl(seed: int, steps: int) -> tuple[_Qwen2VL, Qwen2VLProcessor, list[float]]:
    """Train on the known digits of the train split; returns model, processor and the loss of every step."""
    generator = training.seed_everything(seed)
    draw = random.Random(seed)  # noqa: S311
    processor = build_processor()
    model = _build_model(processor.tokenizer)
    stream = training.batches(known_scans("train"), _BATCH, generator)

    def batch_loss() -> Tensor:
        batch = next(stream)
        nameless = training.chimeras(batch, _CHIMERAS, generator)
        questions = [_ask(name, draw) for name in (*batch.names, *[None] * len(nameless))]
        ink = training.augment(torch.cat([batch.ink, nameless]), generator)
        inputs, labels = encode(processor, ink, questions, [question.answer for question in questions])
        loss: Tensor = model(**inputs, labels=labels).loss
        return loss

    return model, processor, training.train(model, batch_loss, steps, _PEAK_RATE)


def main() -> None:
    """Train, evaluate on the calibration split, save."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = training.parse_arguments("Train the Qwen2-VL of the demo.", OUTPUT, _STEPS)
    start = time.perf_counter()
    model, processor, _ = train_qwen2_vl(arguments.seed, arguments.steps)
    _logger.info("trained in %.0f s", time.perf_counter() - start)
    training.save(arguments.output, model, processor)
    accuracy = choice_accuracy(arguments.output, scans_in("calibration"), arguments.seed)
    _logger.info("right label of three on the calibration split: %.3f", accuracy)


if __name__ == "__main__":
    main()
