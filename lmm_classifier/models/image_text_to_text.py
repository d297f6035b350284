"""Captions by any vision-language model that transformers opens and that has a chat template."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from lmm_classifier.errors import ModelError
from lmm_classifier.models.captioning import refuse_float16
from lmm_classifier.models.runtime.generation import make_greedy, refuse_without_vocabulary
from lmm_classifier.models.runtime.inference import Batches
from lmm_classifier.models.runtime.options import PLACEMENT, refuse_untaken
from lmm_classifier.models.runtime.placement import entry_device, placed_model
from lmm_classifier.models.runtime.pretrained import first_line, pretrained
from lmm_classifier.models.runtime.resizing import MAX_PIXELS, shrunk, widened
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.models.vlm.pixel_budget import MODEL_TYPES, PixelBudget

_DEFAULT_PROMPT = "Describe this photo in one sentence. Name only what is visible in it."
_MAX_ASPECT_RATIO = 200  # of Qwen's image processors, the strictest known


class ChatCaptioner:
    """Answers a prompt about each photo; only what the model adds to the prompt is the caption."""

    def __init__(self, spec: ModelSpec) -> None:
        refuse_untaken(spec, "min_pixels", "max_pixels", *PLACEMENT)
        refuse_float16(spec)
        if not spec.weights:
            raise ModelError("captioner 'image-text-to-text' takes any model: name one as `weights`")
        self._weights = spec.weights
        config = pretrained(AutoConfig.from_pretrained, spec, spec.weights)
        of_qwen = config.model_type in MODEL_TYPES
        if spec.budget and not of_qwen:
            raise ModelError(
                f"model {spec.weights!r} is a {config.model_type!r} checkpoint: min_pixels and max_pixels "
                f"are for {', '.join(MODEL_TYPES)}; leave them out"
            )
        self._processor = pretrained(AutoProcessor.from_pretrained, spec, self._weights)
        self._chat(_DEFAULT_PROMPT)  # a model without a template is refused now
        self._processor.tokenizer.padding_side = "left"  # what follows a prompt must not follow padding
        self._budget = (
            PixelBudget.of(spec, spec.weights, self._processor.image_processor) if of_qwen else None
        )
        self._model = placed_model(AutoModelForImageTextToText, spec, self._weights, config)
        vocabulary = self._model.config.get_text_config().vocab_size
        refuse_without_vocabulary(self._weights, self._processor.tokenizer, vocabulary)
        make_greedy(self._model)
        self._images = Batches(self._weights, "images")
        self._lock = threading.Lock()  # a fast tokenizer keeps state

    def captions(self, images: Sequence[Image.Image], prompt: str | None, max_length: int) -> list[str]:
        asked = _DEFAULT_PROMPT if prompt is None else prompt
        with self._lock:
            parts = self._images.parts(images, lambda part: self._captions(part, asked, max_length))
        return [text for part in parts for text in part]

    def _captions(self, images: Sequence[Image.Image], prompt: str, max_length: int) -> list[str]:
        shown = [self._affordable(image) for image in images]
        as_they_are: dict[str, Any] = {"do_resize": False} if self._budget else {}
        text, bos = self._chat(prompt), self._processor.tokenizer.bos_token
        inputs = self._processor(
            text=[text] * len(shown),
            images=[[image] for image in shown],
            padding=True,
            add_special_tokens=not (bos and text.startswith(bos)),  # or the template's would be there twice
            return_tensors="pt",
            **as_they_are,
        ).to(entry_device(self._model), self._model.dtype)
        ids = self._model.generate(**inputs, max_new_tokens=max_length)
        new = ids[:, inputs["input_ids"].shape[1] :]
        texts: list[str] = self._processor.tokenizer.batch_decode(new, skip_special_tokens=True)
        return texts

    def _affordable(self, image: Image.Image) -> Image.Image:
        """A photo as Qwen's rule has it, or of a size that other processors take, which resize it further."""
        if self._budget:
            return self._budget.fitted(image)
        return widened(shrunk(image, MAX_PIXELS), _MAX_ASPECT_RATIO)

    def _chat(self, prompt: str) -> str:
        """Image and prompt as the model's own chat template puts them."""
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        try:
            chat: str = self._processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
        except (AttributeError, ValueError, TypeError, TemplateError) as error:
            raise ModelError(
                f"model {self._weights!r} has no usable chat template: {first_line(error)}"
            ) from error
        return chat
