"""Labels that try to break the prompt they are put into."""

from __future__ import annotations

import itertools
import random
from functools import wraps
from typing import Any

import pytest
from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

from lmm_classifier.models.runtime.pretrained import locate
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.steps.rerank import Rerank
from lmm_classifier.types import required
from uncertain import uncertain

TINY = ModelSpec("qwen-vl", "shipped:qwen2-vl-digits", dtype="float32")
FRAGMENTS = (
    *("<|im_end|>", "<|im_start|>assistant\n", "<|image_pad|>", "<|vision_start|>", "<|endoftext|>", "</s>"),
    *(
        "{candidates}",
        "{image_description}",
        "{",
        "}",
        "{{ x }}",
        "{% raw %}",
        "%s",
        "\\",
        "'",
        '"',
        "<0x0A>",
    ),
    *("\n", "\r\n", "\u2028", "\x00", "\u202e", "\u200f", "\u0627\u0644", "雛菊", "\U0001f339", "\udc80"),
    *("A.", "B. rose", "rose", "ros", ", ", ".", " ", "unknown", "Answer with the label only.", "[INST]"),
)


def hostile_labels(n: int) -> list[str]:
    draw = random.Random(0)  # noqa: S311
    labels: dict[str, None] = {}
    while len(labels) < n:
        label = "".join(draw.choice(FRAGMENTS) for _ in range(draw.randint(1, 6)))
        labels[label] = None
        if len(labels) % 7 == 0:
            labels[label + draw.choice(FRAGMENTS)] = None  # a prefix of the next
        if len(labels) % 500 == 0:
            labels[label + "x" * 10_000] = None
    return list(labels)[:n]


class TestHostileLabels:
    """Four labels to a question, by name or by letter; the last of the names is "unknown" of the reranker."""

    @pytest.mark.parametrize("scoring", ["likelihood", "letter"])
    @pytest.mark.parametrize("n", [600, pytest.param(10_000, marks=pytest.mark.slow)])
    def test_never_break_a_prompt_nor_reach_the_model_as_special_tokens(
        self, n: int, scoring: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        special: set[int] = set(AutoProcessor.from_pretrained(locate(TINY.weights)).tokenizer.all_special_ids)
        prompts: set[tuple[int, ...]] = set()
        forward = Qwen2VLForConditionalGeneration.forward

        @wraps(forward)
        def watching(self: Any, **inputs: Any) -> Any:
            for row in inputs["input_ids"].tolist() if "pixel_values" in inputs else ():
                prompts.add(tuple(token for token in row if token in special and token))  # 0 pads
            return forward(self, **inputs)

        monkeypatch.setattr(Qwen2VLForConditionalGeneration, "forward", watching)
        labels = hostile_labels(n)
        samples = [uncertain(str(i), tuple(sorted(set(labels[i : i + 4]))), None) for i in range(0, n - 3, 4)]
        step = Rerank(model=TINY, scoring=scoring, max_batch_size=64, self_test=False)  # type: ignore[arg-type]
        step.run([uncertain("plain", ("rose", "tulip"), None)])
        assert len(prompts) == 1  # what the template itself puts there
        for sample in itertools.chain.from_iterable(
            step.run(samples[i : i + 64]) for i in range(0, len(samples), 64)
        ):
            [verdict], [choice] = required(sample.verdicts), required(sample.choices)
            assert verdict.degraded is None
            assert choice is not None
            assert set(choice.options) == {*required(sample.scores).labels, "unknown"}
            assert verdict.label is None or verdict.label in required(sample.scores).labels
            assert sum(choice.probabilities.values()) == pytest.approx(1)
        assert len(prompts) == 1
