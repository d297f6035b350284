"""Train the shipped SigLIP: `python -m lmm_classifier.checkpoints.train_siglip [--steps N]`.

Two terms: the sigmoid image-text loss of SigLIP (Zhai et al., ICCV 2023), and a contrast of two views
of the same scan (SimCLR, Chen et al., ICML 2020), which keeps what a name does not say, so that a sign
never seen does not fall on top of a known one.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor
from torch.nn import functional
from transformers import (
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
)

from lmm_classifier.checkpoints.digits import KNOWN_NAMES
from lmm_classifier.checkpoints.training import (
    Inked,
    augment,
    batches,
    chimeras,
    known_scans,
    parse_arguments,
    photos,
    save,
    seed_everything,
    train,
)

_logger = logging.getLogger(__name__)

OUTPUT = Path(__file__).parent / "siglip-digits"
TEMPLATES = ("{}", "a photo of {}", "the digit {}", "a scan of the handwritten digit {}")
_STEPS = 300
_BATCH = 72  # scans, and CHIMERAS signs without a name
_CHIMERAS = 24
_PEAK_RATE = 1e-3
_CONTRAST_WEIGHT = 0.5
_CONTRAST_TEMPERATURE = 0.1  # SimCLR, table 5
_IMAGE_SIDE = 32  # px: 4 for each scanned pixel
EMBEDDING = 64
_TEXT_LENGTH = 16  # tokens; the longest template has 7
_PAD, _UNKNOWN = "<pad>", "<unk>"


def _build_processor() -> SiglipProcessor:
    """An image processor for 32x32 px and a tokenizer that knows the words of the training texts."""
    words = sorted({word for template in TEMPLATES for word in template.split()} - {"{}"})
    vocabulary = {word: i for i, word in enumerate((_PAD, _UNKNOWN, *words, *KNOWN_NAMES))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=_UNKNOWN))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        pad_token=_PAD,
        unk_token=_UNKNOWN,
        model_max_length=_TEXT_LENGTH,
        model_input_names=["input_ids"],  # as SigLIP's own: it attends to padding, and needs no mask
    )
    size = {"height": _IMAGE_SIDE, "width": _IMAGE_SIDE}
    return SiglipProcessor(SiglipImageProcessor(size=size), tokenizer)  # type: ignore[no-untyped-call]


def build_model(vocabulary: int) -> SiglipModel:
    """An untrained SigLIP of about 150,000 parameters."""
    text = {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": _TEXT_LENGTH,
        "projection_size": EMBEDDING,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    vision = {
        "hidden_size": EMBEDDING,
        "intermediate_size": 2 * EMBEDDING,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": _IMAGE_SIDE,
        "patch_size": _IMAGE_SIDE // 4,
    }
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    with torch.no_grad():
        model.logit_scale.fill_(math.log(10))  # the paper's start
        model.logit_bias.fill_(
            -math.log(len(KNOWN_NAMES))
        )  # about one text in eight fits; the paper's has 32k
    return model


def _text_inputs(processor: SiglipProcessor, texts: Sequence[str]) -> Tensor:
    """Token ids, int64 (n, _TEXT_LENGTH)."""
    tokens = processor.tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt")
    ids: Tensor = tokens["input_ids"]
    return ids


def embed(model: SiglipModel, processor: SiglipProcessor, ink: Tensor) -> Tensor:
    """Float ink (n, 1, 64, 64) to unit vectors, float32 (n, EMBEDDING)."""
    pixels = processor.image_processor(photos(ink), return_tensors="pt")["pixel_values"]
    return functional.normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)


def pairwise_loss(model: SiglipModel, images: Tensor, texts: Tensor, fits: Tensor) -> Tensor:
    """SigLIP's loss, summed over texts and averaged over images.

    The model's own `return_loss=True` takes only the i-th text as right for the i-th image. Here a
    digit comes many times in a batch, and each of its texts is right.

    Args:
        model: gives the logit scale and bias.
        images: unit vectors, float32 (n, d).
        texts: unit vectors, float32 (m, d).
        fits: bool (n, m), whether text j names image i.
    """
    logits = images @ texts.T * model.logit_scale.exp() + model.logit_bias
    return -functional.logsigmoid(torch.where(fits, logits, -logits)).sum(dim=1).mean()


def _contrast_loss(one: Tensor, other: Tensor) -> Tensor:
    """How badly a view finds the other view of the same scan; both unit vectors, float32 (n, d)."""
    return functional.cross_entropy(one @ other.T / _CONTRAST_TEMPERATURE, torch.arange(len(one)))


def _batch_loss(
    model: SiglipModel, processor: SiglipProcessor, batch: Inked, generator: torch.Generator
) -> Tensor:
    """Loss of one batch of scans plus chimeras, which no text fits."""
    ink = torch.cat([batch.ink, chimeras(batch, _CHIMERAS, generator)])
    views = torch.cat([augment(ink, generator), augment(ink, generator)])
    one, other = embed(model, processor, views).chunk(2)
    drawn = torch.randint(len(TEMPLATES), (len(KNOWN_NAMES),), generator=generator).tolist()
    texts = [TEMPLATES[i].format(name) for i, name in zip(drawn, KNOWN_NAMES, strict=True)]
    tokens = _text_inputs(processor, texts)
    named = functional.normalize(model.get_text_features(input_ids=tokens).pooler_output, dim=-1)
    fits = torch.zeros(len(ink), len(KNOWN_NAMES), dtype=torch.bool)
    for row, name in enumerate(batch.names):
        fits[row, KNOWN_NAMES.index(name)] = True
    agreement = pairwise_loss(model, torch.cat([one, other]), named, fits.repeat(2, 1))
    return agreement + _CONTRAST_WEIGHT * _contrast_loss(one, other)


@torch.no_grad()
def zero_shot_accuracy(model: SiglipModel, processor: SiglipProcessor, scans: Inked) -> float:
    """Share of scans that are closest to the text with their own name."""
    images = embed(model, processor, scans.ink)
    tokens = _text_inputs(processor, [TEMPLATES[-1].format(name) for name in KNOWN_NAMES])
    texts = functional.normalize(model.get_text_features(input_ids=tokens).pooler_output, dim=-1)
    chosen: list[int] = (images @ texts.T).argmax(dim=1).tolist()
    right = [KNOWN_NAMES[i] == name for i, name in zip(chosen, scans.names, strict=True)]
    return sum(right) / len(right)


def train_siglip(seed: int, steps: int) -> tuple[SiglipModel, SiglipProcessor, list[float]]:
    """Train on the known digits of the train split; returns model, processor and the loss of every step."""
    generator = seed_everything(seed)
    processor = _build_processor()
    model = build_model(len(processor.tokenizer))
    stream = batches(known_scans("train"), _BATCH, generator)
    losses = train(model, lambda: _batch_loss(model, processor, next(stream), generator), steps, _PEAK_RATE)
    return model, processor, losses


def main() -> None:
    """Train, evaluate on the calibration split, save."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = parse_arguments("Train the SigLIP of the demo.", OUTPUT, _STEPS)
    start = time.perf_counter()
    model, processor, _ = train_siglip(arguments.seed, arguments.steps)
    _logger.info("trained in %.0f s", time.perf_counter() - start)
    accuracy = zero_shot_accuracy(model, processor, known_scans("calibration"))
    _logger.info("zero-shot accuracy on the calibration split: %.3f", accuracy)
    save(arguments.output, model, processor)


if __name__ == "__main__":
    main()
