"""The Qwen2-VL family (Qwen2-VL, Qwen2.5-VL, Qwen3-VL) as a judge of given answers."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
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
# Side by side, answers take memory by the square of their tokens; one that is longer goes alone.
MAX_ANSWER_TOKENS = 1024
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
        first = torch.log_softmax(read.logits[:, -1].float(), dim=-1).cpu()
        # Where the text after the prompt stands: an image takes fewer positions than it has tokens.
        after = mask.sum(dim=1) + self._model.model.rope_deltas[:, 0].cpu()
        scores: dict[int, list[float]] = {asked.place: [] for asked in batch}
        for some in zip_longest(*(_runs(asked.answers, batch_size) for asked in batch), fillvalue=()):
            rest = self._rest(some, read.past_key_values, mask, after)
            for row, asked in enumerate(batch):
                opening = first[row, [answer[0] for answer in some[row]]].tolist()
                scores[asked.place] += [a + b for a, b in zip(opening, rest[row], strict=True)]
        return scores

    def _rest(
        self,
        answers: Sequence[Sequence[list[int]]],
        memory: Any,
        mask: torch.Tensor,
        after: torch.Tensor,
    ) -> list[list[float]]:
        """Per question and answer, the log-likelihood of the answer's tokens after its first.

        The answers of a question stand side by side in one row, each blind to the others, so that they
        share the memory of the prompt instead of a copy each.
        """
        given, _ = _padded([[t for answer in some for t in answer[:-1]] for some in answers])
        totals = [[0.0] * len(some) for some in answers]
        if not given.shape[1]:  # every answer is its own end
            return totals
        owner, place = torch.full_like(given, -1), torch.zeros_like(given)
        for row, some in enumerate(answers):
            lengths = torch.tensor([len(answer) - 1 for answer in some])
            tokens = int(lengths.sum())
            owner[row, :tokens] = torch.arange(len(some)).repeat_interleave(lengths)
            place[row, :tokens] = torch.cat([torch.arange(n) for n in lengths])
        same = owner[:, :, None] == owner[:, None, :]
        earlier = place[:, :, None] >= place[:, None, :]
        seen = torch.cat([mask[:, None, :].expand(-1, given.shape[1], -1).bool(), same & earlier], dim=2)
        device, dtype = self._model.device, self._model.dtype
        closed = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
        logits = self._model(
            input_ids=given.to(device),
            attention_mask=closed[:, None].to(device),
            position_ids=(after[:, None] + place)
            .expand(3, -1, -1)
            .to(device),  # the same in all three in text
            past_key_values=memory,
            use_cache=True,
        ).logits
        memory.crop(-given.shape[1])
        targets, _ = _padded([[t for answer in some for t in answer[1:]] for some in answers], fill=_IGNORED)
        losses = torch.nn.functional.cross_entropy(
            logits.float().transpose(1, 2), targets.to(device), ignore_index=_IGNORED, reduction="none"
        ).cpu()
        for row, some in enumerate(answers):
            for number in range(len(some)):
                totals[row][number] = -float(losses[row, owner[row] == number].sum())
        return totals


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


def _runs(answers: Sequence[list[int]], most: int) -> Iterator[Sequence[list[int]]]:
    """Answers that go through the model side by side: at most so many, and of not too many tokens."""
    run: list[list[int]] = []
    for answer in answers:
        if run and (len(run) == most or sum(map(len, run)) + len(answer) > MAX_ANSWER_TOKENS):
            yield run
            run = []
        run.append(answer)
    yield run


def _length(question: Question) -> tuple[int, int]:
    """What the number of tokens grows with: pixels, then characters."""
    return min(question.image.width * question.image.height, MAX_PIXELS), len(question.prompt)


def _affordable(image: Image.Image) -> Image.Image:
    """An image of at most about MAX_PIXELS that is not too long and thin for the image processor."""
    return widened(shrunk(image, MAX_PIXELS), _MAX_ASPECT_RATIO)


def _literal(tokenizer: Any, text: str) -> list[int]:
    """Tokens of the text as it stands: `<|im_end|>` in a label is eight characters, not a token."""
    return list(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))
