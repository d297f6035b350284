"""Whether the photos of a run look as those that the calibration was fitted on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lmm_classifier.api.hybrid_classifier import HybridClassifier
from lmm_classifier.decision.gates import Gates
from lmm_classifier.index.manifest import read_manifest
from lmm_classifier.labelling.run_store import LabellingRun
from lmm_classifier.monitoring.drift import Drift, drift
from lmm_classifier.monitoring.p_value_log import calibration_of, name_of


def drift_of(run: LabellingRun, classifier: HybridClassifier) -> Drift | None:
    """Test the p-values of a run; None where that says nothing: without the calibration that they are of.

    Args:
        run: the run.
        classifier: what made it, with its index as it is now.

    Raises:
        RunError: a shard is damaged.
        IndexFolderError: the index or its calibration is damaged.
    """
    if read_manifest(Path(run.manifest.index)).digest != run.manifest.index_digest:
        return None
    p_values = run.columns("p_value")["p_value"].drop_null().to_numpy().astype(np.float64)
    if not isinstance(classifier.thresholds, Gates) or not len(p_values):
        return None
    fitted = calibration_of(classifier)
    if name_of(fitted) != run.manifest.calibration:
        return None
    calibrated, kept = fitted.decider.calibrated, fitted.calibration.gates.keep_known
    return drift(p_values.tolist(), calibrated, kept, window=len(p_values))  # they are in no order of time
