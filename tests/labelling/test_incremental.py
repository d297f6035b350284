"""An index that grows in memory decides as one that was built with all photos."""

from __future__ import annotations

import numpy as np
import pytest

from clusters import clusters
from lmm_classifier.labelling.incremental import IncrementalClassifier
from lmm_classifier.types import UNKNOWN, FloatArray


def photos(labels: int, n: int, seed: int) -> tuple[FloatArray, list[str]]:
    """The later labels sort among the others."""
    vectors, codes = clusters(labels, n, 0.4, seed)
    return vectors, [f"{'dbca'[code % 4]}{code}" for code in codes]


def test_learning_is_building_with_all_photos() -> None:
    vectors, labels = photos(4, 30, 1)
    asked, _ = photos(4, 10, 2)
    old = np.asarray([label[0] in "db" for label in labels])  # the new labels sort among the old ones
    learner = IncrementalClassifier.calibrated(
        [vectors[old]], [x for x, o in zip(labels, old, strict=True) if o]
    )
    grown = learner
    for part in np.array_split(np.random.default_rng(0).permutation(np.flatnonzero(~old)), 3):
        grown = grown.learned([vectors[part]], [labels[i] for i in part])
    rows = np.concatenate([np.flatnonzero(old), np.flatnonzero(~old)])
    codes = np.searchsorted(grown.labels, [labels[i] for i in rows]).astype(np.int64)
    whole = IncrementalClassifier.calibrated([vectors[rows]], [labels[i] for i in rows])
    assert grown.labels == whole.labels == ("a3", "b1", "c2", "d0")
    assert sorted(grown.codes.tolist()) == sorted(codes.tolist())
    for name, values in grown.references[0].arrays().items():
        if name in ("counts", "prototypes", "mean"):
            np.testing.assert_allclose(values, whole.references[0].arrays()[name], atol=1e-5)
    found, expected = grown._queries([asked]), whole._queries([asked])
    depth = found.similarity.shape[1]
    np.testing.assert_allclose(found.similarity, expected.similarity[:, :depth], atol=1e-6)
    assert (found.codes == expected.codes[:, :depth]).mean() > 0.99  # equal similarities in another order
    recalibrated = grown.recalibrated()
    assert recalibrated.answers([asked]).labels == whole.answers([asked]).labels


def test_what_was_learned_is_answered() -> None:
    vectors, labels = photos(4, 30, 1)
    asked, truths = photos(5, 20, 3)
    new = [i for i, label in enumerate(truths) if label == "d4"]
    learner = IncrementalClassifier.calibrated([vectors], labels)
    before = learner.answers([asked])
    assert np.mean([before.labels[i] == UNKNOWN for i in new]) > 0.8
    after = learner.learned([asked[new[:10]]], ["d4"] * 10).answers([asked])
    assert np.mean([after.labels[i] == "d4" for i in new[10:]]) > 0.8


def test_unknown_is_no_label_to_learn() -> None:
    learner = IncrementalClassifier.calibrated([photos(4, 30, 1)[0]], photos(4, 30, 1)[1])
    with pytest.raises(ValueError, match="'unknown' is no label to learn"):
        learner.learned([np.ones((1, 16), np.float32)], [UNKNOWN])
    assert learner.learned([np.empty((0, 16), np.float32)], []) is learner
    assert len(learner.answers([np.empty((0, 16), np.float32)])) == 0
