"""The Qwen2-VL family (Qwen2-VL, Qwen2.5-VL, Qwen3-VL) as a judge of given answers."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from jinja2 import TemplateError
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from lmm_classifier.errors import ModelError, OutOfTimeError
from lmm_classifier.models.base import Question
from lmm_classifier.models.runtime.default_checkpoints import default_weights
from lmm_classifier.models.runtime.inference import running
from lmm_classifier.models.runtime.options import PLACEMENT, refuse_untaken
from lmm_classifier.models.runtime.placement import entry_device, placed_model
from lmm_classifier.models.runtime.pretrained import checkpoint_state, first_line, pretrained
from lmm_classifier.models.runtime.resizing import MAX_PIXELS, side_of
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.models.vlm.pixel_budget import MODEL_TYPES, PixelBudget
from lmm_classifier.models.vlm.prefix_sharing import Picture, TokenizedQuestion, log_likelihoods
from lmm_classifier.models.vlm.prompts import answers_of, asked
from lmm_classifier.types import FloatArray

_DEFAULT_WEIGHTS = default_weights("qwen-vl")
_REMEMBERED = 4096  # texts whose tokens are kept
_MARK = "\N{OBJECT REPLACEMENT CHARACTER}prompt\N{OBJECT REPLACEMENT CHARACTER}"


class QwenVLChooser:
    """Rates an option by the log-likelihood of its text, letter or word as the model's answer.

    Nothing is generated and no prose is parsed. The text of prompt and options is tokenised apart from
    the chat template, with special tokens off, so a label cannot open or close a turn. Questions about the
    same image object share its pass through the model, and whatever else they begin with.
    """

    input_size: ClassVar = side_of(MAX_PIXELS)

    def __init__(self, spec: ModelSpec) -> None:
        refuse_untaken(spec, "min_pixels", "max_pixels", *PLACEMENT)
        self._weights = spec.weights or _DEFAULT_WEIGHTS
        config = pretrained(AutoConfig.from_pretrained, spec, self._weights)
        if config.model_type not in MODEL_TYPES:
            raise ModelError(
                f"model {self._weights!r} is a {config.model_type!r} checkpoint; "
                f"'qwen-vl' takes {', '.join(MODEL_TYPES)}"
            )
        self._processor = pretrained(AutoProcessor.from_pretrained, spec, self._weights)
        self._budget = PixelBudget.of(spec, self._weights, self._processor.image_processor)
        self._model = placed_model(AutoModelForImageTextToText, spec, self._weights, config)
        self.fingerprint = f"{config.model_type} {checkpoint_state(spec, self._weights)} {self._model.dtype}"
        if spec.budget:
            self.fingerprint += f" {spec.budget}"
        self._image_token = config.image_token_id
        self._tokens: dict[str, list[int]] = {}
        encode = partial(self._processor.tokenizer.encode, add_special_tokens=False)
        self._prefix, self._next_image, self._suffix = map(encode, self._chat_frame())
        self._lock = threading.Lock()  # a fast tokenizer keeps "special tokens on or off" as state
        self._due: float | None = None
        for layer in self._model.model.language_model.layers:
            layer.register_forward_pre_hook(self._in_time)

    def log_likelihoods(self, questions: Sequence[Question], batch_size: int) -> list[FloatArray]:
        values: dict[int, list[float]] = {}
        with self._lock, running(self._weights, f"{len(questions)} questions"):
            for rows in self._batches(questions, batch_size):
                self._due = _latest([questions[question.place] for row in rows for question in row])
                values |= log_likelihoods(self._model, rows, batch_size)
        return [np.asarray(values[i], np.float32) for i in range(len(questions))]

    def plain_log_likelihoods(self, question: Question) -> FloatArray:
        """The same of one question by a whole pass per option, sharing nothing: for a self-test."""
        with self._lock, running(self._weights, "a question"):
            self._due = question.due
            plain = self._asked(0, question, self._pictures([question]))
            return np.asarray([self._plain(plain, answer) for answer in plain.answers], np.float32)

    def _batches(
        self, questions: Sequence[Question], batch_size: int
    ) -> Iterator[list[list[TokenizedQuestion]]]:
        """Rows of questions about one image, of similar length, so that there is little padding.

        A batch has at most `batch_size` answers, or one row.
        """
        about: defaultdict[int, list[int]] = defaultdict(list)
        for i, question in enumerate(questions):
            about[id(question.image)].append(i)
        rows: list[list[int]] = []
        answers = 0
        for places in sorted(about.values(), key=lambda places: self._length(questions[places[0]])):
            more = sum(len(questions[i].options) for i in places)
            if rows and answers + more > batch_size:
                yield self._rows(questions, rows)
                rows, answers = [], 0
            rows.append(places)
            answers += more
        if rows:
            yield self._rows(questions, rows)

    def _length(self, question: Question) -> tuple[int, int]:
        """What the number of tokens grows with: pixels, then characters."""
        pixels = question.image.width * question.image.height
        return min(pixels, self._budget.most), len(question.prompt)

    def _rows(
        self, questions: Sequence[Question], rows: Sequence[Sequence[int]]
    ) -> list[list[TokenizedQuestion]]:
        pictures = self._pictures([questions[i] for row in rows for i in row])
        return [[self._asked(i, questions[i], pictures) for i in row] for row in rows]

    def _pictures(self, questions: Sequence[Question]) -> dict[int, Picture]:
        """By `id`, all images of some questions as the model takes them."""
        images = {id(image): image for question in questions for image in _images(question)}
        shown = [self._budget.fitted(image) for image in images.values()]
        features = self._processor.image_processor(images=shown, do_resize=False, return_tensors="pt")
        grids = features["image_grid_thw"]
        parts = features["pixel_values"].split(grids.prod(dim=1).tolist())
        return {key: Picture(part, grid[None]) for key, part, grid in zip(images, parts, grids, strict=True)}

    def _asked(self, place: int, question: Question, pictures: dict[int, Picture]) -> TokenizedQuestion:
        """A question as tokens.

        Args:
            place: its number.
            question: the question.
            pictures: by `id`, its images.
        """
        shown = [pictures[id(image)] for image in _images(question)]
        prompt = self._with_image(self._prefix, shown[0])
        for (text, _), picture in zip(question.exemplars, shown[1:], strict=True):
            prompt += [*self._literal(text), *self._with_image(self._next_image, picture)]
        prompt += self._literal(asked(question.prompt, question.options, question.form))
        prompt += self._suffix
        ids = torch.tensor([prompt])
        is_image = ids[0] == self._image_token
        positions, _ = self._model.model.get_rope_index(
            ids, mm_token_type_ids=is_image[None].int(), image_grid_thw=torch.cat([p.grid for p in shown])
        )
        starts = torch.nonzero(is_image & ~torch.cat([torch.tensor([False]), is_image[:-1]]))[:, 0].tolist()
        answers = self._answers(question)
        return TokenizedQuestion(place, prompt, positions[:, 0], tuple(shown), tuple(starts), answers)

    def _answers(self, question: Question) -> list[list[int]]:
        """Tokens of each answer: of a letter or word alone, of a text with the end of the turn."""
        texts = answers_of(question.options, question.form)
        tokens = [self._literal(text) for text in texts]
        if question.form != "text":
            if len({tuple(ids) for ids in tokens if len(ids) == 1}) == len(tokens):
                return tokens
            if question.form == "letter":
                raise ModelError(
                    f"the tokenizer of {self._weights!r} has no single token for each of the letters "
                    f"{', '.join(texts)}: let options be rated by their text"
                )
        return [[*ids, self._processor.tokenizer.eos_token_id] for ids in tokens]

    def _literal(self, text: str) -> list[int]:
        """Tokens of the text as it stands: `<|im_end|>` in a label is eight characters, not a token.

        The last ones are remembered: labels come again, and often the whole question does.
        """
        if text not in self._tokens:
            if len(self._tokens) >= _REMEMBERED:
                self._tokens.clear()
            tokenizer = self._processor.tokenizer
            self._tokens[text] = list(
                tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
            )
        return self._tokens[text]

    def _chat_frame(self) -> tuple[str, str, str]:
        """What the model's own chat template puts before the text, around a further image, and after."""
        text = {"type": "text", "text": _MARK}
        content = [{"type": "image"}, text, {"type": "image"}, text]
        try:
            chat = self._processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
            prefix, between, suffix = chat.split(_MARK)
        except (ValueError, TypeError, TemplateError) as error:
            raise ModelError(
                f"model {self._weights!r} has no usable chat template: {first_line(error)}"
            ) from error
        return prefix, between, suffix

    def _with_image(self, ids: list[int], picture: Picture) -> list[int]:
        """Repeat the image token once per visual token of the picture."""
        visual_tokens = int(picture.grid.prod()) // self._processor.image_processor.merge_size**2
        return [i for token in ids for i in [token] * (visual_tokens if token == self._image_token else 1)]

    def _plain(self, question: TokenizedQuestion, answer: list[int]) -> float:
        device, dtype = entry_device(self._model), self._model.dtype
        ids = torch.tensor([[*question.prompt, *answer]])
        logits = self._model(
            input_ids=ids.to(device),
            mm_token_type_ids=(ids == self._image_token).int().to(device),
            pixel_values=torch.cat([p.pixel_values for p in question.pictures]).to(device, dtype),
            image_grid_thw=torch.cat([p.grid for p in question.pictures]).to(device),
            use_cache=False,
        ).logits[0, len(question.prompt) - 1 : -1]
        scored = logits.float().log_softmax(dim=-1).cpu()
        return float(scored[torch.arange(len(answer)), torch.tensor(answer)].sum())

    def _in_time(self, *_: object) -> None:
        """Before each layer: nobody waits any more for what this pass is about."""
        if self._due is not None and time.monotonic() > self._due:
            raise OutOfTimeError(f"{self._weights!r} was stopped: the time for the answer is up")


def _images(question: Question) -> list[Image.Image]:
    """All that are shown, in order."""
    return [question.image, *(image for _, image in question.exemplars)]


def _latest(questions: Sequence[Question]) -> float | None:
    """When the last of them is due; None where one may come whenever it does."""
    dues = [question.due for question in questions if question.due is not None]
    return max(dues) if dues and len(dues) == len(questions) else None
