"""BLIP: a short sentence about a photo, by a model of a quarter of a billion parameters."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from PIL import Image
from transformers import AutoConfig, BlipForConditionalGeneration, BlipProcessor

from lmm_classifier.errors import ModelError
from lmm_classifier.models.captioning import refuse_float16
from lmm_classifier.models.runtime.default_checkpoints import default_weights
from lmm_classifier.models.runtime.generation import make_greedy, refuse_without_vocabulary
from lmm_classifier.models.runtime.inference import Batches
from lmm_classifier.models.runtime.options import refuse_untaken
from lmm_classifier.models.runtime.pretrained import pretrained, pretrained_model
from lmm_classifier.models.spec import ModelSpec

_DEFAULT_WEIGHTS = default_weights("blip")


class BlipCaptioner:
    """Captions by BLIP; a prompt is how the sentence begins, and part of it."""

    def __init__(self, spec: ModelSpec) -> None:
        refuse_untaken(spec)
        refuse_float16(spec)
        self._weights = spec.weights or _DEFAULT_WEIGHTS
        config = pretrained(AutoConfig.from_pretrained, spec, self._weights)
        if config.model_type != "blip":
            raise ModelError(
                f"model {self._weights!r} is a {config.model_type!r} checkpoint, not a 'blip' one"
            )
        self._positions: int = config.text_config.max_position_embeddings
        self._processor = pretrained(BlipProcessor.from_pretrained, spec, self._weights)
        vocabulary = config.text_config.vocab_size
        refuse_without_vocabulary(self._weights, self._processor.tokenizer, vocabulary)
        self._model = pretrained_model(BlipForConditionalGeneration.from_pretrained, spec, self._weights)
        make_greedy(self._model.text_decoder)
        self._images = Batches(self._weights, "images")
        self._lock = threading.Lock()  # a fast tokenizer keeps state

    def captions(self, images: Sequence[Image.Image], prompt: str | None, max_length: int) -> list[str]:
        with self._lock:
            parts = self._images.parts(images, lambda part: self._captions(part, prompt, max_length))
        return [text for part in parts for text in part]

    def _captions(self, images: Sequence[Image.Image], prompt: str | None, max_length: int) -> list[str]:
        tokenizer = self._processor.tokenizer
        # `generate` puts its own first token in place of [CLS], and drops [SEP].
        start = torch.tensor(tokenizer(prompt or "").input_ids, device=self._model.device)
        if len(start) - 1 + max_length > self._positions:
            raise ModelError(
                f"{self._weights!r} has {self._positions} positions: too few for a prompt of "
                f"{len(start) - 2} tokens and max_length {max_length}"
            )
        pixels = self._processor.image_processor(images=list(images), return_tensors="pt")["pixel_values"]
        ids = self._model.generate(
            input_ids=start.repeat(len(images), 1),
            attention_mask=torch.ones(len(images), len(start), dtype=torch.long, device=start.device),
            pixel_values=pixels.to(self._model.device, self._model.dtype),
            max_new_tokens=max_length,
        )
        # The first token opens every caption; its id lies beyond the published vocabulary.
        texts: list[str] = tokenizer.batch_decode(ids[:, 1:], skip_special_tokens=True)
        return texts
