"""What decides which vector an image gets."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class EncoderContract:
    """Everything that decides which vector an image gets. Vectors of two contracts never mix.

    Attributes:
        name: encoder family, as in the registry.
        weights: hub id, local folder name, or "" for an encoder without weights.
        revision: revision asked of the hub.
        weights_digest: SHA-256 over the loaded tensors; "" without weights.
        preprocessing: canonical JSON of what decides the vectors beside the weights: how an image becomes
            the model's input and, where a family leaves a choice, activation and pooling.
        dim: d, length of the vectors.
        dtype: arithmetic of the model, "float32" or "bfloat16". Vectors are always stored as float32.
    """

    name: str
    weights: str
    revision: str
    weights_digest: str
    preprocessing: str
    dim: int
    dtype: str

    @property
    def fingerprint(self) -> str:
        """Short digest of what decides the vectors: `weights` and `revision` only say where from."""
        return _fingerprint(self)


@lru_cache(maxsize=64)  # every photo is asked for its vector by it
def _fingerprint(contract: EncoderContract) -> str:
    identity = asdict(contract)
    if contract.weights_digest:
        del identity["weights"], identity["revision"]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
