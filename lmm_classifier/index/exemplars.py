"""Photos of the corpus that show what a label looks like: those nearest to a query."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from lmm_classifier.corpus.images import open_image
from lmm_classifier.index.search import open_matching
from lmm_classifier.types import FloatArray

COPY = 1 - 1e-5  # similarity from which a photo is the query itself, which shows nothing new


def nearest_of_label(
    folder: Path,
    root: Path,
    embeddings: Mapping[str, FloatArray],
    region: int,
    label: str,
    count: int,
    below: float = COPY,
) -> tuple[Image.Image, ...]:
    """The photos of a label that are nearest to a region, nearest first; fewer where it has fewer.

    Args:
        folder: the index.
        root: the folder that its paths start from.
        embeddings: encoder fingerprint -> float32 (r, d), of the query.
        region: which row.
        label: one of the index; of any other there is no photo.
        count: at most.
        below: similarity from which a photo is left out, for it is the query itself.

    Raises:
        EncoderMismatchError: the query was embedded by no encoder of the index.
        ImageError: a photo cannot be read.
    """
    index = open_matching(folder, embeddings)
    if label not in index.labels:
        return ()
    query = np.ascontiguousarray(index.vectors_of(embeddings)[[region]])
    k = count + 1
    while True:
        found = index.search(query, k, (label,))
        rows = found.rows[0][found.rows[0] >= 0]
        near = rows[found.similarity[0][: len(rows)] < below]
        if len(near) >= count or len(rows) < k:  # enough, or the label has no more
            return tuple(open_image(root / path) for path in index.records.paths(near[:count]))
        k *= 4
