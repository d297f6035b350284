"""What captioners have in common: the same words for the same photo, of a vocabulary that is there."""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig

from lmm_classifier.errors import ModelError


def make_greedy(model: Any) -> None:
    """Make `generate` take the likeliest token each time, until what the checkpoint says ends a text.

    Its sampling, beams and length are dropped, and so are penalties for repetition. They are taken off the
    model: transformers fills in from there what a call leaves out, and warns of what does not go together.
    """
    own = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id
    )


def refuse_without_vocabulary(weights: str, tokenizer: Any, vocab_size: int) -> None:
    """Raise a ModelError if a tokenizer knows less than half of the tokens of its model.

    Without its file, transformers makes one of nothing but the special tokens, and does not say so. A few
    fewer than the model has are usual: its table is rounded up.
    """
    if len(tokenizer) < vocab_size / 2:
        raise ModelError(
            f"model {weights!r} lacks the vocabulary of its tokenizer: "
            f"{len(tokenizer)} of {vocab_size} tokens"
        )
