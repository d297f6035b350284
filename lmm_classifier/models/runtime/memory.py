"""How much memory the weights of an open model take."""

from __future__ import annotations

from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch

_OURS = "lmm_classifier.models"
file_bytes: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
"""Session of onnxruntime -> size of its file: the session itself does not tell."""
spread_bytes: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
"""Model spread over devices -> bytes of its weights that are not on disk: its own tensors do not tell."""


def weight_bytes(model: Any) -> int:
    """Bytes of the tensors of torch that a model holds, each counted once, and of its ONNX files.

    What a model opens later, such as a text tower, counts from then on. Buffers of a pass do not.
    """
    total, seen, found = 0, set[int](), [model]
    while found:
        value = found.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.nn.Module):
            tensors = {id(t): t for t in chain(value.parameters(), value.buffers())}
            new = sum(t.nbytes for key, t in tensors.items() if key not in seen and not t.is_meta)
            total += spread_bytes.get(value, new)
            seen |= tensors.keys()
        elif isinstance(value, dict):
            found.extend(value.values())
        elif isinstance(value, list | tuple):
            found.extend(value)
        elif type(value).__module__ == "onnxruntime.capi.onnxruntime_inference_collection":
            total += file_bytes.get(value, 0)
        elif type(value).__module__.startswith(_OURS):
            found.extend(vars(value).values() if hasattr(value, "__dict__") else ())
    return total
