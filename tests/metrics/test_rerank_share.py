from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from lmm_classifier.api.classification import Candidate, Classification
from lmm_classifier.errors import ConfigError, CorpusError
from lmm_classifier.evaluation.query import EvaluatedItem
from lmm_classifier.evaluation.summary import Measure
from lmm_classifier.metrics.rerank_share import RerankedShare, accuracy_by_share, share_for_gain
from lmm_classifier.types import UNKNOWN


def photos(evidence: list[float], gains: list[int], unsent_right: list[bool]) -> RerankedShare:
    """Sent photos of these gains, in front of others that were not sent; a gain of 0 is right both times."""
    n = len(gains)
    without = np.asarray([gain < 1 for gain in gains] + unsent_right)
    right = np.asarray([gain > -1 for gain in gains] + unsent_right)
    column = np.asarray([*evidence, *[0.9] * len(unsent_right)])
    return RerankedShare(column, np.arange(len(without)) < n, without, right)


def by_hand(second: float = 0.2) -> RerankedShare:
    # most doubtful first: corrected, unchanged, corrected, spoilt, corrected; five more were not sent
    evidence = [0.5, 0.1, 0.4, second, 0.3]
    return photos(evidence, [1, 1, -1, 0, 1], [True, False, True, False, True])


def drawn(seed: int) -> RerankedShare:
    generator = np.random.default_rng(seed)
    evidence = generator.choice([0.2, 0.4, 0.6], 6).tolist()
    gains = [1, *generator.choice([-1, 0, 1, 1], 5).tolist()]
    return photos(evidence, gains, [True, False, False])


def test_by_hand() -> None:
    curve = accuracy_by_share(by_hand())
    assert curve.x == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert curve.y == pytest.approx([0.5, 0.6, 0.6, 0.7, 0.6, 0.7])
    assert share_for_gain(by_hand(), 0.8) == pytest.approx(0.3)  # 1.6 of a gain of 2
    assert share_for_gain(by_hand(), 0.5) == pytest.approx(0.1)


def test_photos_of_equal_doubt_count_as_their_mean_order() -> None:
    tied = by_hand(second=0.3)
    assert accuracy_by_share(tied).y == pytest.approx([0.5, 0.6, 0.65, 0.7, 0.6, 0.7])
    assert share_for_gain(tied, 0.7) == pytest.approx(0.2)  # 1.4 of 2: 1.5 is expected of the first two


@pytest.mark.parametrize("seed", range(6))
def test_the_curve_is_the_mean_over_all_orders(seed: int) -> None:
    found = drawn(seed)
    runs = []
    for order in permutations(range(6)):
        if list(found.certainty[list(order)]) == sorted(found.certainty[:6]):
            labels = found.without.copy()
            runs.append([labels.mean()])
            for photo in order:
                labels[photo] = found.right[photo]
                runs[-1].append(labels.mean())
    curve = accuracy_by_share(found)
    assert curve.y == pytest.approx(np.mean(runs, axis=0))
    if found.gain.sum() > 0:
        enough = curve.y[0] + 0.8 * (curve.y[-1] - curve.y[0])
        assert share_for_gain(found, 0.8) == pytest.approx(curve.x[np.argmax(curve.y >= enough - 1e-9)])


@pytest.mark.parametrize("seed", range(6))
def test_a_photo_that_counts_twice_is_two_photos(seed: int) -> None:
    found = drawn(seed)
    counts = np.random.default_rng(seed).integers(0, 3, (4, 9))
    counts[:, 0] = 1  # one is sent
    together = share_for_gain(found, 0.8, counts.astype(float))
    for row in range(4):
        columns = (found.certainty, found.sent, found.without, found.right)
        twice = RerankedShare(*(np.repeat(column, counts[row]) for column in columns))
        assert together[row] == pytest.approx(share_for_gain(twice, 0.8), nan_ok=True)


def query(truth: str, retrieval: str, answer: str, evidence: float, options: str | None) -> EvaluatedItem:
    """An answered photo; `options` is what the reranker was offered beside "unknown", None if not asked."""
    offered = {} if options is None else dict.fromkeys([*options, UNKNOWN], 0.3)
    evidences = dict.fromkeys(offered, 0.0) | {retrieval: evidence}
    candidates = tuple(Candidate(label, e, offered.get(label)) for label, e in evidences.items())
    found = Classification(
        source="x", label=answer, score=0.5, used_reranker=options is not None, status="known", stage="s",
        reason="", degraded=None, retrieval_label=retrieval, closeness=0.5, candidates=candidates,
        neighbours=(), thresholds=None, timings={}, certainty=evidence,
    )  # fmt: skip
    return EvaluatedItem(Path("x.png"), truth, found)


def test_figures_of_the_reranker_by_hand() -> None:
    found = Measure(20, 0).rerank(
        [
            query("a", "b", "a", 0.3, "ab"),  # corrected
            query("a", "a", "b", 0.4, "ab"),  # spoilt
            query("c", "b", "b", 0.5, "ab"),  # wrong, and no reranker could help
            query(UNKNOWN, "b", UNKNOWN, 0.2, "ab"),  # corrected: an unknown called unknown is right
            query(UNKNOWN, "a", "a", 0.9, None),  # not asked, wrong
            query("a", "a", "a", 0.9, None),
            query(UNKNOWN, "b", UNKNOWN, 0.6, "b"),  # corrected
            query("b", "a", "a", 0.9, None),
        ]
    )
    assert found.share.value == 5 / 8
    assert found.accuracy is not None
    assert found.accuracy.value == 3 / 4  # of the four where the right answer was offered
    assert (found.ceiling.value, found.ceiling_known.value) == (5 / 8, 3 / 5)
    assert found.by_share is not None
    assert found.by_share.share == pytest.approx([0, 1 / 8, 2 / 8, 3 / 8, 4 / 8, 5 / 8])
    assert found.by_share.accuracy == pytest.approx([2 / 8, 3 / 8, 4 / 8, 3 / 8, 3 / 8, 4 / 8])
    assert found.by_share.enough is not None
    assert found.by_share.enough.value == 2 / 8  # 1.6 of a gain of 2
    assert 0 < found.by_share.enough.low <= found.by_share.enough.high <= 1


def test_without_a_gain_no_share_brings_it() -> None:
    assert np.isnan(share_for_gain(photos([0.1, 0.2], [1, -1], [True]), 0.8))
    assert np.isnan(share_for_gain(photos([0.1, 0.2], [0, -1], [True]), 0.8))


def test_nonsense_is_refused() -> None:
    with pytest.raises(CorpusError, match="sent no photo"):
        photos([], [], [True])
    yes, no = np.asarray([True, True]), np.asarray([True, False])
    with pytest.raises(ConfigError, match="photo 1 changed"):
        RerankedShare(np.asarray([0.1, 0.2]), no, yes, no)
    with pytest.raises(ConfigError, match="part must be above 0"):
        share_for_gain(by_hand(), 0)
