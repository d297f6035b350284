"""The Qwen2-VL family (Qwen2-VL, Qwen2.5-VL, Qwen3-VL) as a judge of given answers."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import torch
from jinja2 import TemplateError
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from lmm_classifier.errors import ModelError
from lmm_classifier.models.base import ModelSpec, Question, refuse_compile
from lmm_classifier.models.forward import running
from lmm_classifier.models.pretrained import first_line, pretrained, pretrained_model
from lmm_classifier.models.published import default_weights
from lmm_classifier.models.shape import shrunk, widened
from lmm_classifier.types import FloatArray

DEFAULT_WEIGHTS = default_weights("qwen-vl")
# 1280 visual tokens of 28 x 28 px: the bound that Qwen2-VL's model card proposes to balance cost and
# quality. The processor's own limit would let a 12-megapixel photo take 16,000.
MAX_PIXELS = 1280 * 28 * 28
MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
_MARK = "\N{OBJECT REPLACEMENT CHARACTER}prompt\N{OBJECT REPLACEMENT CHARACTER}"
_MAX_ASPECT_RATIO = 200  # the image processor refuses longer slivers
_IGNORED = -100  # torch's cross_entropy leaves this target out


@dataclass(frozen=True, slots=True, eq=False)
class _Row:
    """One (question, option) pair as tokens; the last `n_scored` of `ids` are the option."""

    question: int
    ids: list[int]
    n_scored: int
    pixel_values: torch.Tensor
    image_grid_thw: torch.Tensor


class QwenVLChooser:
    """Rates an option by the log-likelihood of its text, whole and closed, as the model's answer.

    Nothing is generated and no prose is parsed. The text of prompt and options is tokenised apart from
    the chat template, with special tokens off, so a label cannot open or close a turn.
    """

    input_size: ClassVar = math.isqrt(MAX_PIXELS) + 1  # the shorter side of that many pixels is no longer

    def __init__(self, spec: ModelSpec) -> None:
        refuse_compile(spec)
        self._weights = spec.weights or DEFAULT_WEIGHTS
        config = pretrained(AutoConfig.from_pretrained, spec, self._weights)
        if config.model_type not in MODEL_TYPES:
            raise ModelError(
                f"model {self._weights!r} is a {config.model_type!r} checkpoint; "
                f"'qwen-vl' takes {', '.join(MODEL_TYPES)}"
            )
        self._processor = pretrained(AutoProcessor.from_pretrained, spec, self._weights)
        self._model = pretrained_model(AutoModelForImageTextToText.from_pretrained, spec, self._weights)
        self._image_token = config.image_token_id
        self._prefix, self._suffix = self._chat_frame()
        self._lock = threading.Lock()  # a fast tokenizer keeps "special tokens on or off" as state

    def log_likelihoods(self, questions: Sequence[Question], batch_size: int) -> list[FloatArray]:
        values: list[list[float]] = [[] for _ in questions]
        with self._lock, running(self._weights, f"{len(questions)} questions"):
            rows = (row for i, question in enumerate(questions) for row in self._rows(i, question))
            while batch := list(islice(rows, batch_size)):
                for row, value in zip(batch, self._score(batch), strict=True):
                    values[row.question].append(value)
        return [np.asarray(row, np.float32) for row in values]

    def _rows(self, position: int, question: Question) -> Iterator[_Row]:
        tokenizer = self._processor.tokenizer
        image = self._processor.image_processor(images=[_affordable(question.image)], return_tensors="pt")
        prefix = tokenizer.encode(self._prefix, add_special_tokens=False)
        prompt = [
            *self._with_image(prefix, image["image_grid_thw"][0]),
            *_literal(tokenizer, question.prompt),
            *tokenizer.encode(self._suffix, add_special_tokens=False),
        ]
        for option in question.options:
            answer = [*_literal(tokenizer, option), tokenizer.eos_token_id]
            yield _Row(position, prompt + answer, len(answer), image["pixel_values"], image["image_grid_thw"])

    def _chat_frame(self) -> tuple[str, str]:
        """What the model's own chat template puts before and after the text of the prompt."""
        content = [{"type": "image"}, {"type": "text", "text": _MARK}]
        try:
            chat = self._processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
            prefix, suffix = chat.split(_MARK)
        except (ValueError, TypeError, TemplateError) as error:
            raise ModelError(
                f"model {self._weights!r} has no usable chat template: {first_line(error)}"
            ) from error
        return prefix, suffix

    def _with_image(self, ids: list[int], grid: torch.Tensor) -> list[int]:
        """Repeat the image token once per visual token of the (time, height, width) patch grid."""
        visual_tokens = int(grid.prod()) // self._processor.image_processor.merge_size**2
        return [i for token in ids for i in [token] * (visual_tokens if token == self._image_token else 1)]

    def _score(self, rows: Sequence[_Row]) -> list[float]:
        longest = max(len(row.ids) for row in rows)
        scored = max(row.n_scored for row in rows)
        # Padding on the left lines the options up at the end, so only their logits need computing.
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        targets = torch.full((len(rows), scored), _IGNORED)
        for i, row in enumerate(rows):
            ids[i, longest - len(row.ids) :] = torch.tensor(row.ids)
            mask[i, longest - len(row.ids) :] = 1
            targets[i, scored - row.n_scored :] = torch.tensor(row.ids[-row.n_scored :])
        device = self._model.device
        inputs: dict[str, Any] = {
            "input_ids": ids.to(device),
            "attention_mask": mask.to(device),
            "mm_token_type_ids": (ids == self._image_token).int().to(device),
            "pixel_values": torch.cat([row.pixel_values for row in rows]).to(device, self._model.dtype),
            "image_grid_thw": torch.cat([row.image_grid_thw for row in rows]).to(device),
        }
        logits = self._model(**inputs, logits_to_keep=scored + 1, use_cache=False).logits[
            :, :-1
        ]  # next-token
        losses = torch.nn.functional.cross_entropy(
            logits.float().transpose(1, 2), targets.to(device), ignore_index=_IGNORED, reduction="none"
        )
        return [-value for value in losses.sum(dim=1).tolist()]


def _affordable(image: Image.Image) -> Image.Image:
    """An image of at most about MAX_PIXELS that is not too long and thin for the image processor."""
    return widened(shrunk(image, MAX_PIXELS), _MAX_ASPECT_RATIO)


def _literal(tokenizer: Any, text: str) -> list[int]:
    """Tokens of the text as it stands: `<|im_end|>` in a label is eight characters, not a token."""
    return list(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))
