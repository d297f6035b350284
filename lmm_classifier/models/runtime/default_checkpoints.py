"""The checkpoints that a family means when nobody names weights, as the registry has them. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, get_args

from lmm_classifier import registry

Task = Literal["embed", "rerank", "detect", "segment", "classify", "caption"]
TASKS: tuple[Task, ...] = get_args(Task)
_TASK_OF: Mapping[registry.Kind, Task] = {
    "encoder": "embed",
    "chooser": "rerank",
    "detector": "detect",
    "segmenter": "segment",
    "panoptic": "segment",
    "classifier": "classify",
    "captioner": "caption",
}


def default_checkpoints() -> Iterator[tuple[Task, str, registry.Entry]]:
    """Task, family and entry of each family with weights of its own, by task."""
    for kind, task in _TASK_OF.items():
        for family, entry in registry.BUILTINS[kind].items():
            if entry.weights:
                yield task, family, entry


def default_weights(family: str) -> str:
    """What a spec without weights means; "" for a family that has none or brings them along."""
    return next((entry.weights for _, name, entry in default_checkpoints() if name == family), "")
