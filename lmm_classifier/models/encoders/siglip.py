"""SigLIP and SigLIP 2: photos and texts in one space."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from transformers import (
    AutoTokenizer,
    Siglip2TextModel,
    Siglip2VisionModel,
    SiglipTextModel,
    SiglipVisionModel,
)

from lmm_classifier.errors import ModelError
from lmm_classifier.models.encoders.tower import OnFirstUse, VisionTower
from lmm_classifier.models.runtime.default_checkpoints import default_weights
from lmm_classifier.models.runtime.inference import Batches
from lmm_classifier.models.runtime.pretrained import pretrained, pretrained_model
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.types import FloatArray

_TEXT_TOWERS: dict[str, Any] = {"siglip": SiglipTextModel, "siglip2": Siglip2TextModel}


class SiglipEncoder(VisionTower):
    """The pooled outputs of the two towers, L2-normalised. The text tower is opened when it is asked."""

    family: ClassVar = "siglip"
    title: ClassVar = "SigLIP"
    default_weights: ClassVar = default_weights("siglip")
    # SigLIP 2 of fixed resolution is of the first type, of native aspect ratio of the second.
    towers: ClassVar = {
        "siglip": SiglipVisionModel,
        "siglip_vision_model": SiglipVisionModel,
        "siglip2": Siglip2VisionModel,
        "siglip2_vision_model": Siglip2VisionModel,
    }

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        if not self._model.use_head:
            raise ModelError(f"model {self._weights!r} has no pooling head, hence no vector of an image")
        self._text = OnFirstUse(self._open_text)
        self._texts = Batches(self._weights, "texts")
        self._lock = threading.Lock()  # a tokenizer keeps padding and truncation as state

    def encode_text(self, texts: Sequence[str]) -> FloatArray:
        if not texts:
            return self._no_rows
        tokenizer, model = self._text()  # before inference mode begins: it would stick to the weights
        return self._texts.unit_rows(texts, lambda part: self._text_features(part, tokenizer, model))

    def _text_features(self, texts: Sequence[str], tokenizer: Any, model: Any) -> torch.Tensor:
        with self._lock:
            tokens = tokenizer(
                # Trained on lower case only, which the tokenizers of some checkpoints leave to the caller.
                [text.lower() for text in texts],
                padding="max_length",  # as trained: the towers attend to padding
                truncation=True,
                max_length=model.config.max_position_embeddings,
                return_tensors="pt",
            )
        pooled: torch.Tensor = model(**tokens.to(model.device)).pooler_output
        return pooled

    def _open_text(self) -> tuple[Any, Any]:
        if self._model_type not in _TEXT_TOWERS:
            raise ModelError(
                f"model {self._weights!r} is a {self._model_type!r} checkpoint without a text tower"
            )
        tokenizer = pretrained(AutoTokenizer.from_pretrained, self._spec, self._weights)
        tower = _TEXT_TOWERS[self._model_type]
        return tokenizer, pretrained_model(tower.from_pretrained, self._spec, self._weights)
