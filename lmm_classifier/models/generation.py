"""How captioners generate: the same words for the same photo, however the checkpoint would rather sample."""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig


def make_greedy(model: Any) -> None:
    """Make `generate` take the likeliest token each time, until what the checkpoint says ends a text.

    Its sampling, beams and length are dropped, and so are penalties for repetition. They are taken off the
    model: transformers fills in from there what a call leaves out, and warns of what does not go together.
    """
    own = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id
    )
