"""Libraries that only some installations have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lmm_classifier.errors import ConfigError


@contextmanager
def extra(library: str, name: str) -> Iterator[None]:
    """Around the imports of a library that the extra `name` of this package brings.

    Raises:
        ConfigError: it is not installed, or cannot be imported; says how to install it.
    """
    remedy = f"pip install 'lmm-classifier[{name}]'"
    try:
        yield
    except ImportError as error:
        if error.name and error.name.partition(".")[0] == library:
            raise ConfigError(f"{library} is not installed: {remedy}") from error
        raise ConfigError(f"{library} cannot be imported ({error}): {remedy}") from error
