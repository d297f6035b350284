"""Places that the README named in 0.1: they work for one more release, and say where a name is now."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED: Mapping[str, Mapping[str, str]] = {
    "lmm_classifier.evaluate": {},
    "lmm_classifier.evaluate.calibrate": {"calibrate": "calibrate"},
    "lmm_classifier.evaluate.evaluate": {"evaluate": "evaluate"},
    "lmm_classifier.models.base": {"ModelSpec": "ModelSpec"},
    "lmm_classifier.models.segmentation": {"open_photo": "open_photo"},
    "lmm_classifier.plan": {"Where": "RegionSelector"},
    "lmm_classifier.vision": {
        "classify": "classify_image",
        "embed": "embed",
        "labels": "labels",
        "similarity": "similarity",
    },
}
"""Module -> name in it -> its name in `lmm_classifier`."""


def moved_name(module: str, name: str) -> Any:
    """What a module that the README named had under this name; for the `__getattr__` of such a module.

    Raises:
        AttributeError: the module never had such a name.
    """
    if name not in MOVED[module]:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    now = MOVED[module][name]
    warnings.warn(
        f"{module}.{name} will be gone in 0.3: write `from lmm_classifier import {now}`",
        DeprecationWarning,
        stacklevel=3,
    )
    return import_module("lmm_classifier").__getattr__(now)  # an attribute may be a module of that name


class _CallableModule(ModuleType):
    """`lmm_classifier.evaluate` was a package and is a function: once imported as that, it is both."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return moved_name(f"{self.__name__}.evaluate", "evaluate")(*arguments, **options)


class _MovedModules(MetaPathFinder, Loader):
    """Finds modules of `MOVED` of which there is no file any more."""

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        if fullname not in MOVED:
            return None
        return ModuleSpec(fullname, self, is_package=not MOVED[fullname])

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None if MOVED[spec.name] else _CallableModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        module.__getattr__ = lambda name: moved_name(module.__name__, name)  # type: ignore[method-assign]


def install() -> None:
    """Let imports of such modules succeed. They are looked for last, after all files."""
    if not any(isinstance(finder, _MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(_MovedModules())
