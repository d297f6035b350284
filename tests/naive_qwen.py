"""Qwen-VL as plain transformers and qwen_vl_utils run it: an unpadded pass per answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from qwen_vl_utils import process_vision_info
from transformers import (
    AutoProcessor,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
)
from transformers.pipelines import PIPELINE_REGISTRY

from lmm_classifier.models.base import Question
from lmm_classifier.models.vlm.prompts import YES_NO, answers_of, asked

with_decisions = pytest.mark.skipif(
    "decision" not in PIPELINE_REGISTRY.get_supported_tasks(),
    reason="transformers has no decisions before 5.23",
)
"""Of tests whose oracle is its pipeline, or its server, for typed decisions."""
MODELS: dict[str, Any] = {
    "qwen2_vl": Qwen2VLForConditionalGeneration,
    "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration,
    "qwen3_vl": Qwen3VLForConditionalGeneration,
}
END = "<|im_end|>"
PROMPT = "Which label fits the image best: {candidates}? The label only."
OPTIONS = (
    "daisy",
    "daisy daisy",
    "daisy daisy daisy",  # each a prefix of the next
    "dais",
    "a",
    "rose",
    "unknown",
    "a very long label, of the kind that a museum gives: " + "oxeye daisy, " * 20,
    "Gänseblümchen 雛菊",
)


def naive(family: str, folder: Path, questions: list[Question]) -> list[list[float]]:
    """Plain transformers, one unpadded pass per answer: the sum over the tokens of the answer and its end."""
    model = MODELS[family].from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    return [
        [_naive(model, processor, q, option) for option in answers_of(q.options, q.form)] for q in questions
    ]


def whole(family: str, folder: Path, question: Question) -> Question:
    """A yes-or-no question as one about texts, where the tokenizer has no single tokens for the words."""
    tokenizer = AutoProcessor.from_pretrained(folder).tokenizer
    if all(len(tokenizer(word)["input_ids"]) == 1 for word in YES_NO):
        return question
    return replace(question, prompt=asked(question.prompt, YES_NO, "yes_no"), form="text")


@torch.no_grad()
def _naive(model: Any, processor: Any, question: Question, option: str) -> float:
    end = END if question.form == "text" else ""
    text = chat(processor, question) + option + end
    images = [prepared(processor, image) for image in (question.image, *(i for _, i in question.exemplars))]
    inputs = processor(text=[text], images=images, do_resize=False, return_tensors="pt")
    answer = processor.tokenizer(option + end)["input_ids"]
    assert inputs["input_ids"][0, -len(answer) :].tolist() == answer
    log_probabilities = model(**inputs).logits[0].double().log_softmax(dim=-1)
    return sum(float(log_probabilities[i - len(answer) - 1, token]) for i, token in enumerate(answer))


def prepared(
    processor: Any, image: Image.Image, least: int | None = None, most: int | None = None
) -> Image.Image:
    """A photo as Qwen's own library hands it to the processor, whose limits hold where none are given."""
    part = {
        "type": "image",
        "image": image,
        "min_pixels": least or processor.image_processor.size["shortest_edge"],
        "max_pixels": most or processor.image_processor.size["longest_edge"],
    }
    messages = [{"role": "user", "content": [part]}]
    found, _ = process_vision_info(messages, image_patch_size=processor.image_processor.patch_size)
    [shown] = found
    return shown


def chat(processor: Any, question: Question) -> str:
    content = [{"type": "image"}]
    for text, _ in question.exemplars:
        content += [{"type": "text", "text": text}, {"type": "image"}]
    content.append({"type": "text", "text": asked(question.prompt, question.options, question.form)})
    return processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
