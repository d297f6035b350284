"""Hybrid image classification: retrieval, calibrated unknowns, and a vision-language model for the rest.

All that a program needs is imported from here: `from lmm_classifier import HybridClassifier`. The names are
declared in `__init__.pyi`. Each is imported on first use: `import lmm_classifier` imports no model library.
The modules below are private: they may move from one release to the next.
"""

import lazy_loader

from lmm_classifier import deprecation

__version__ = "0.1.0"
__getattr__, _, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]


def __dir__() -> list[str]:
    return sorted(__all__)


deprecation.install()
