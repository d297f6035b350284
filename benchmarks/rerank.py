"""Reranking against what transformers offers for it; ratios from one run, same checkpoint and photos.

    python benchmarks/rerank.py [--questions 60] [--labels 4] [--rounds 5] [--size 28]
        [--weights shipped:qwen2-vl-digits]

`rate` reads image and prompt of a question once and goes on from there for every label, in batches. By
names it is compared with a loop of `generate` that writes an answer per photo (which may be none of the
labels), by letters with `pipeline("decision")`, which scores the letter of each option after the same words,
a prompt at a time. They take turns, so that a drift of the machine's speed hits all; the figures are medians,
and the median of the ratios of the same round. On a GPU the same is done once more with a random checkpoint
of the size of Qwen2-VL-2B, in bfloat16, on larger photos.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    Qwen2VLForConditionalGeneration,
    pipeline,
)

from lmm_classifier.checkpoints.digits import picture_of, scans_in
from lmm_classifier.models.base import Question
from lmm_classifier.models.runtime.pretrained import locate
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.models.vlm.answer_cache import rate
from lmm_classifier.models.vlm.prompts import DEFAULT_PROMPT, render_prompt
from lmm_classifier.models.vlm.strategies import LETTER_PROMPT

LABELS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
Answers = Callable[[], list[str]]
# Qwen/Qwen2-VL-2B-Instruct, config.json; the vocabulary stays the tiny tokenizer's
TWO_BILLION = {
    "text_config": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    },
    "vision_config": {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "num_heads": 16, "mlp_ratio": 4},
}


def main() -> None:
    """Time, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    for name, default in (("questions", 60), ("labels", 4), ("rounds", 5), ("size", 28), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--weights", default="shipped:qwen2-vl-digits")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    labels = LABELS[: options.labels]
    photos = _photos(options.questions, options.size)
    _compare(options.weights, photos, labels, options.rounds, "float32")
    print("targets: 5 and 3")
    if torch.cuda.is_available():
        with TemporaryDirectory() as folder:
            _random_checkpoint(options.weights, folder)
            _compare(folder, _photos(options.questions, 448), labels, options.rounds, "bfloat16")


def _compare(weights: str, photos: list[Image.Image], labels: Sequence[str], rounds: int, dtype: str) -> None:
    spec = ModelSpec("qwen-vl", weights, dtype=dtype)  # type: ignore[arg-type]
    folder = locate(weights)
    by_name = render_prompt(DEFAULT_PROMPT, labels)
    instructions = render_prompt(LETTER_PROMPT, labels)
    pairs = (
        (
            ("rate, by names", _rated(spec, [Question(p, by_name, tuple(labels)) for p in photos])),
            ("generate, one by one", _generated(folder, photos, by_name, dtype)),
        ),
        (
            (
                "rate, by letters",
                _rated(spec, [Question(p, instructions, tuple(labels), "letter") for p in photos]),
            ),
            ('pipeline("decision")', _decided(folder, photos, instructions, labels, dtype)),
        ),
    )
    width, height = photos[0].size
    print(f"{len(photos)} photos of {width} x {height} px, {len(labels)} labels, {weights}, {dtype}")
    for ours, theirs in pairs:
        same = np.mean([a == b for a, b in zip(ours[1](), theirs[1](), strict=True)])  # opens and warms up
        times = [[_seconds(call) for _, call in (ours, theirs)] for _ in range(rounds)]
        for i, (name, _) in enumerate((ours, theirs)):
            rate_of = len(photos) / median(row[i] for row in times)
            ratio = median(row[i] / row[0] for row in times)
            print(f"{name:22} {rate_of:8.1f} photos/s   {ratio:6.1f} times as long")
        print(f"{'':22} the same answer about {same:.1%}")


def _photos(count: int, size: int) -> list[Image.Image]:
    """Scans of digits."""
    scans = scans_in("query")[:count]
    return [picture_of(scan.pixels).resize((size, size)).convert("RGB") for scan in scans]


def _random_checkpoint(weights: str, folder: str) -> None:
    config = AutoConfig.from_pretrained(locate(weights))
    for part, sizes in TWO_BILLION.items():
        for name, value in sizes.items():
            setattr(getattr(config, part), name, value)
    Qwen2VLForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(folder)
    AutoProcessor.from_pretrained(
        locate(weights), size={"shortest_edge": 56 * 56, "longest_edge": 448 * 448}
    ).save_pretrained(folder)


def _rated(spec: ModelSpec, questions: list[Question]) -> Answers:
    return lambda: [
        q.options[int(values.argmax())]
        for q, values in zip(questions, rate(spec, questions, 256), strict=True)
    ]


def _generated(folder: str, photos: list[Image.Image], prompt: str, dtype: str) -> Answers:
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)

    def loop() -> list[str]:
        answers = []
        with torch.inference_mode():
            for photo in photos:
                inputs = processor(text=[text], images=[photo], return_tensors="pt").to(model.device)
                written = model.generate(**inputs, max_new_tokens=8, do_sample=False)
                new = written[:, inputs["input_ids"].shape[1] :]
                answers += processor.batch_decode(new, skip_special_tokens=True)
        return answers

    return loop


def _decided(
    folder: str, photos: list[Image.Image], instructions: str, labels: Sequence[str], dtype: str
) -> Answers:
    device = 0 if torch.cuda.is_available() else -1
    decide = pipeline("decision", model=folder, dtype=getattr(torch, dtype), device=device)
    question = {"type": "choice", "instructions": instructions, "criteria": dict.fromkeys(labels)}

    def loop() -> list[str]:
        with torch.inference_mode():
            return [
                decide({"state": "<p>", "questions": {"label": question}, "assets": {"<p>": photo}})["label"][
                    "choice"
                ]
                for photo in photos
            ]

    return loop


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
