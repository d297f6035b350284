"""Hybrid image classification: retrieval, calibrated unknowns, and a vision-language model for the rest.

The public names below are imported on first use; `import lmm_classifier` itself imports no model library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmm_classifier.api.build_index import build_index_from_directory as build_index_from_directory
    from lmm_classifier.api.classification import Classification as Classification
    from lmm_classifier.api.hybrid_classifier import HybridClassifier as HybridClassifier
    from lmm_classifier.collection.classifier import CollectionClassifier as CollectionClassifier
    from lmm_classifier.config.pipeline import PipelineConfig as PipelineConfig
    from lmm_classifier.errors import LmmClassifierError as LmmClassifierError
    from lmm_classifier.models.spec import ModelSpec as ModelSpec

__version__ = "0.1.0"

_HOMES = {
    "Classification": "lmm_classifier.api.classification",
    "CollectionClassifier": "lmm_classifier.collection.classifier",
    "HybridClassifier": "lmm_classifier.api.hybrid_classifier",
    "LmmClassifierError": "lmm_classifier.errors",
    "ModelSpec": "lmm_classifier.models.base",
    "PipelineConfig": "lmm_classifier.config.pipeline",
    "build_index_from_directory": "lmm_classifier.api.build_index",
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
