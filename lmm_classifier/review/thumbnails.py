"""Photos of a run, and of the corpus, on their way to a page: decoded here and encoded anew."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Literal

from lmm_classifier.corpus.images import open_image, read_image_bytes
from lmm_classifier.corpus.pixels import as_webp
from lmm_classifier.errors import ImageError
from lmm_classifier.service.errors import HttpError

Size = Literal["large", "small"]
_SIDES: dict[Size, int] = {"large": 1024, "small": 256}  # px, longest side; twice what a gallery shows
_QUALITY = 85  # of 100: no block can be seen in a photo
_GONE = frozenset({"not_found", "not_a_file", "permission_denied", "io_error"})


def picture(path: Path, size: Size, sha256: str | None = None) -> bytes:
    """A WebP of a photo.

    Args:
        path: the photo.
        size: which of SIDES.
        sha256: of the bytes it must have; None: it may have any.

    Raises:
        Refusal: it is gone, has changed, or cannot be read.
    """
    try:
        data = read_image_bytes(path)
        if sha256 not in (None, hashlib.sha256(data).hexdigest()):
            raise HttpError(409, "changed", "the photo has changed since it was labelled")
        return as_webp(open_image(data, target_size=_SIDES[size]), _SIDES[size], _QUALITY)
    except ImageError as error:
        if error.code in _GONE:
            raise HttpError(404, "gone", f"the photo is not to be had: {error.reason}") from error
        raise HttpError(409, "changed", f"the photo cannot be shown: {error.reason}") from error


def below(folder: Path, path: str) -> Path:
    """A path of an index, in the folder that it starts from; refuses one that leads out of it by its name."""
    inside = os.path.normpath(folder / path)
    if not Path(inside).is_relative_to(os.path.normpath(folder)):
        raise HttpError(404, "gone", "the photo is not in the corpus folder")
    return Path(inside)
