"""The Qwen2-VL family (Qwen2-VL, Qwen2.5-VL, Qwen3-VL) as a judge of given answers."""

from __future__ import annotations

import copy
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
class _Asked:
    """One question as tokens: the prompt with its image, and the answers, each with the end of the turn."""

    place: int
    prompt: list[int]
    answers: list[list[int]]
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
        values: dict[int, list[float]] = {}
        with self._lock, running(self._weights, f"{len(questions)} questions"):
            for batch in self._batches(questions, batch_size):
                values |= self._score(batch, batch_size)
        return [np.asarray(values[i], np.float32) for i in range(len(questions))]

    def _batches(self, questions: Sequence[Question], batch_size: int) -> Iterator[list[_Asked]]:
        """Questions of similar length, so that there is little padding, with at most `batch_size` answers."""
        order = sorted(range(len(questions)), key=lambda i: _length(questions[i]))
        batch: list[_Asked] = []
        for i in order:
            answers = sum(len(asked.answers) for asked in batch)
            if batch and answers + len(questions[i].options) > batch_size:
                yield batch
                batch = []
            batch.append(self._asked(i, questions[i]))
        if batch:
            yield batch

    def _asked(self, place: int, question: Question) -> _Asked:
        tokenizer = self._processor.tokenizer
        image = self._processor.image_processor(images=[_affordable(question.image)], return_tensors="pt")
        prefix = tokenizer.encode(self._prefix, add_special_tokens=False)
        prompt = [
            *self._with_image(prefix, image["image_grid_thw"][0]),
            *_literal(tokenizer, question.prompt),
            *tokenizer.encode(self._suffix, add_special_tokens=False),
        ]
        answers = [[*_literal(tokenizer, option), tokenizer.eos_token_id] for option in question.options]
        return _Asked(place, prompt, answers, image["pixel_values"], image["image_grid_thw"])

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

    def _score(self, batch: Sequence[_Asked], batch_size: int) -> dict[int, list[float]]:
        """Per place, the log-likelihoods of its answers.

        Image and prompt go through the model once, whatever the number of answers; these go on from the
        keys and values that are left of it.
        """
        prompts, mask = _padded([asked.prompt for asked in batch], left=True)
        device = self._model.device
        read = self._model(
            input_ids=prompts.to(device),
            attention_mask=mask.to(device),
            mm_token_type_ids=(prompts == self._image_token).int().to(device),
            pixel_values=torch.cat([asked.pixel_values for asked in batch]).to(device, self._model.dtype),
            image_grid_thw=torch.cat([asked.image_grid_thw for asked in batch]).to(device),
            logits_to_keep=1,
            use_cache=True,
        )
        first = torch.log_softmax(read.logits[:, -1].float(), dim=-1)
        # Where the text after the prompt stands: an image takes fewer positions than it has tokens.
        after = mask.sum(dim=1) + self._model.model.rope_deltas[:, 0].cpu()
        pairs = [(row, answer) for row, asked in enumerate(batch) for answer in asked.answers]
        scores: list[float] = []
        for start in range(0, len(pairs), batch_size):
            part = pairs[start : start + batch_size]
            rows = torch.tensor([row for row, _ in part])
            opening = first[rows.to(device), torch.tensor([answer[0] for _, answer in part]).to(device)]
            last = start + batch_size >= len(pairs)
            memory = read.past_key_values if last else copy.deepcopy(read.past_key_values)
            memory.batch_select_indices(rows.to(device))
            rest = self._rest([answer for _, answer in part], memory, mask[rows], after[rows])
            scores += (opening.cpu() + rest).tolist()
        found = iter(scores)
        return {asked.place: list(islice(found, len(asked.answers))) for asked in batch}

    def _rest(
        self, answers: Sequence[list[int]], memory: Any, mask: torch.Tensor, after: torch.Tensor
    ) -> torch.Tensor:
        """Log-likelihood of each answer's tokens after its first, float32 (answers,)."""
        given, given_mask = _padded([answer[:-1] for answer in answers])
        if not given.shape[1]:  # every answer is its own end
            return torch.zeros(len(answers))
        targets, _ = _padded([answer[1:] for answer in answers], fill=_IGNORED)
        device = self._model.device
        positions = after[:, None] + torch.arange(given.shape[1])
        logits = self._model(
            input_ids=given.to(device),
            attention_mask=torch.cat([mask, given_mask], dim=1).to(device),
            position_ids=positions.expand(3, -1, -1).to(device),  # time, height and width agree in text
            past_key_values=memory,
            use_cache=True,
        ).logits
        losses = torch.nn.functional.cross_entropy(
            logits.float().transpose(1, 2), targets.to(device), ignore_index=_IGNORED, reduction="none"
        )
        return -losses.sum(dim=1).cpu()


def _padded(
    rows: Sequence[Sequence[int]], *, left: bool = False, fill: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of tokens as int64 (rows, longest), and a mask of the same shape that is 1 on tokens."""
    longest = max(map(len, rows))
    tokens, mask = torch.full((len(rows), longest), fill), torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(longest - len(row), longest) if left else slice(0, len(row))
        tokens[i, place] = torch.tensor(row, dtype=torch.long)
        mask[i, place] = 1
    return tokens, mask


def _length(question: Question) -> tuple[int, int]:
    """What the number of tokens grows with: pixels, then characters."""
    return min(question.image.width * question.image.height, MAX_PIXELS), len(question.prompt)


def _affordable(image: Image.Image) -> Image.Image:
    """An image of at most about MAX_PIXELS that is not too long and thin for the image processor."""
    return widened(shrunk(image, MAX_PIXELS), _MAX_ASPECT_RATIO)


def _literal(tokenizer: Any, text: str) -> list[int]:
    """Tokens of the text as it stands: `<|im_end|>` in a label is eight characters, not a token."""
    return list(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))
