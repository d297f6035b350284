"""A photo that retrieval is not sure of, as `open_set` leaves it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from lmm_classifier.types import Sample, Scores, Verdict


def uncertain(name: str, labels: tuple[str, ...], probabilities: tuple[float, ...] | None) -> Sample:
    shares = np.asarray([probabilities or [1 / len(labels)] * len(labels)], np.float32)
    verdict = Verdict(
        "uncertain", labels[int(shares.argmax())], float(shares.max()), "open_set", "", route="rerank"
    )
    scores = Scores(labels, shares, np.ones(1, np.float32))
    return replace(Sample.from_image(name, Image.new("RGB", (28, 28))), scores=scores, verdicts=(verdict,))
