"""Reranking against what transformers offers for it; ratios from one run, same checkpoint and photos.

    python benchmarks/rerank.py [--questions 60] [--labels 4] [--rounds 5] [--size 28]
        [--weights shipped:qwen2-vl-digits]

`rate` reads image and prompt of a question once and goes on from there for every label, in batches. It is
compared with a loop of `generate` that writes an answer per photo, and with `pipeline("decision")`, which
scores the letter of each option, a prompt at a time. They take turns, so that a drift of the machine's speed
hits all; the figures are medians, and the median of the ratios of the same round.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

from lmm_classifier.models.base import ModelSpec, Question, rate
from lmm_classifier.models.pretrained import locate
from lmm_classifier.models.prompt import DEFAULT_PROMPT, render_prompt

LABELS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def main() -> None:
    """Time, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    for name, default in (("questions", 60), ("labels", 4), ("rounds", 5), ("size", 28), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--weights", default="shipped:qwen2-vl-digits")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rng = np.random.default_rng(0)
    images = [
        Image.fromarray(rng.integers(0, 256, (options.size, options.size, 3), np.uint8))
        for _ in range(options.questions)
    ]
    labels = LABELS[: options.labels]
    prompt = render_prompt(DEFAULT_PROMPT, labels)
    folder = locate(options.weights)
    calls = {
        "rate, batches of 256": _rated(options.weights, images, prompt, labels),
        "generate, one by one": _generated(folder, images, prompt),
        'pipeline("decision")': _decided(folder, images, labels),
    }
    times = [[_seconds(call) for call in calls.values()] for _ in range(options.rounds + 1)][1:]
    print(f"{options.questions} photos of {options.size} px, {options.labels} labels, {options.weights}")
    for i, name in enumerate(calls):
        seconds = median(row[i] for row in times)
        ratio = median(row[i] / row[0] for row in times)
        print(f"{name:22} {options.questions / seconds:8.1f} photos/s   {ratio:6.1f} times as long as rate")
    print("targets: 5 and 3")


def _rated(
    weights: str, images: list[Image.Image], prompt: str, labels: tuple[str, ...]
) -> Callable[[], object]:
    spec = ModelSpec("qwen-vl", weights, dtype="float32")
    questions = [Question(image, prompt, labels) for image in images]
    return lambda: rate(spec, questions, 256)


def _generated(folder: str, images: list[Image.Image], prompt: str) -> Callable[[], object]:
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)

    def loop() -> None:
        with torch.inference_mode():
            for image in images:
                inputs = processor(text=[text], images=[image], return_tensors="pt")
                model.generate(**inputs, max_new_tokens=8, do_sample=False)

    return loop


def _decided(folder: str, images: list[Image.Image], labels: tuple[str, ...]) -> Callable[[], object]:
    decide = pipeline("decision", model=folder, dtype=torch.float32)
    question = {
        "type": "choice",
        "instructions": "Which label fits the image?",
        "criteria": {x: x for x in labels},
    }

    def loop() -> None:
        with torch.inference_mode():
            for image in images:
                decide({"state": "<p>", "questions": {"label": question}, "assets": {"<p>": image}})

    return loop


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
