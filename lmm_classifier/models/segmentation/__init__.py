from typing import Any

from lmm_classifier.deprecation import moved_name


def __getattr__(name: str) -> Any:
    return moved_name(__name__, name)
