"""A calibration of an index, made by hand where a test is not about how it is fitted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lmm_classifier.decision.decider import Decider
from lmm_classifier.decision.gates import Gates
from lmm_classifier.decision.heads import HeadSettings
from lmm_classifier.decision.novelty import Combination
from lmm_classifier.decision.reference import Moments, fit_reference
from lmm_classifier.index.calibration import Calibration, write_calibration
from lmm_classifier.index.manifest import read_manifest
from lmm_classifier.index.search import open_index

GATES = Gates(known=0.5, sure=0.6, probability=0.2, keep_known=0.95, coverage=0.99)


def write_fitted(folder: Path, **changes: Any) -> Calibration:
    """Calibrate an index as the test says: `known` is the similarity of the nearest neighbour, as odds."""
    index = open_index(folder)
    head = HeadSettings({"knn": 1.0}, k=10, temperature=0.07)
    novelty = Combination(("max_similarity",), (0.0,), (1.0,), (1.0,), 0.0)
    calibration = replace(
        Calibration(
            gates=GATES,
            head=head,
            novelty=novelty,
            depth=10,
            labels=None,
            text_weight=0.0,
            text_temperature=None,
            target="keep 95.0% of known images",
            n_images=60,
            n_held_out=0,
            seed=0,
            heads={},
            auroc={},
            expected={},
            expected_unknown={},
            encoders=(index.encoder.fingerprint,),
            index_digest=read_manifest(folder).digest,
            created="2026-01-01T00:00:00+00:00",
        ),
        **changes,
    )
    blocks = index.vectors.blocks(index.records.codes.astype(np.int64), np.ones(len(index), bool))
    reference = fit_reference(Moments.of(blocks, len(index.labels), index.encoder.dim))
    decider = Decider(
        (reference,), calibration.head, calibration.depth, calibration.novelty, np.linspace(0.4, 0.7, 60)
    )
    return write_calibration(folder, calibration, decider, ())
