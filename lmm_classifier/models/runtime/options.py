"""Options of a spec that few families take, and the refusal of the others. No torch."""

from __future__ import annotations

from lmm_classifier.errors import ModelError
from lmm_classifier.models.spec import ModelSpec

NOT_TAKEN_BY_ALL = {
    "compile": "is not compiled by torch",
    "min_pixels": "does not enlarge photos to a number of pixels",
    "max_pixels": "does not scale photos to a number of pixels",
    "device_map": "is not spread over devices",
    "max_memory": "is not kept within a bound of memory",
    "offload_folder": "is not kept on disk",
}
"""Option of a spec that few families take -> what is said of the others."""
PLACEMENT = ("device_map", "max_memory", "offload_folder")
"""Those that `models.runtime.placement` obeys."""


def refuse_untaken(spec: ModelSpec, *taken: str) -> None:
    """Raise a ModelError if a spec sets an option of `NOT_TAKEN_BY_ALL` that its family does not take."""
    for name, why in NOT_TAKEN_BY_ALL.items():
        if name not in taken and getattr(spec, name) not in (None, False):
            raise ModelError(f"{spec.family!r} {why}; leave `{name}` out")
