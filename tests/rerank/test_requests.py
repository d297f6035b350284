"""Which regions a reranker is asked about, and between what it may choose: cases computed by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lmm_classifier.decision.fusion import Fusion
from lmm_classifier.index.calibration import RerankTrial
from lmm_classifier.rerank.requests import RerankRequest, rerank_requests, skip_reason
from lmm_classifier.types import UNKNOWN, Route, Sample, Scores, Status, Verdict
from synthetic import picture

LABELS = ("ape", "bee", "cat", "doe")
VALUES = (0.1, 0.4, 0.2, 0.3)
TRIAL = RerankTrial(Fusion(), True, ("bee",), 40, 10, 2, "a reranker", ask_below=0.6)


def decided(
    status: Status = "uncertain",
    label: str | None = "bee",
    route: Route | None = None,
    possible: tuple[str, ...] = (),
    known: float | None = None,
) -> Sample:
    """A photo after `open_set`: bee .4, doe .3, cat .2, ape .1."""
    scores = Scores(
        LABELS,
        np.asarray([VALUES], np.float32),
        None if known is None else np.asarray([known], np.float32),
    )
    verdict = Verdict(status, label, 0.4, "open_set", "by hand", route=route, candidates=possible)
    sample = Sample.from_image("photo", picture((200, 40, 40), seed=1))
    return replace(sample, scores=scores, verdicts=(verdict,))


def options(sample: Sample, max_candidates: int = 2, allow_unknown: bool = True) -> set[str]:
    [request] = rerank_requests(sample, 0, max_candidates, allow_unknown)
    assert len(set(request.options)) == len(request.options)
    return set(request.options)


class TestWhoIsAskedAbout:
    @pytest.mark.parametrize(
        ("sample", "n"),
        [
            (decided(), 1),
            (decided("known"), 0),
            (decided("unknown", None), 0),
            (decided(route="rerank"), 1),
            (decided(route="review"), 0),
            (decided(possible=("bee",)), 0),
            (decided(possible=("bee", UNKNOWN)), 1),
        ],
        ids=["uncertain", "known", "unknown", "sent to it", "sent to a person", "one answer", "two answers"],
    )
    def test_the_uncertain_that_have_a_choice(self, sample: Sample, n: int) -> None:
        assert len(list(rerank_requests(sample, 0, 2, True))) == n

    def test_one_candidate_and_no_unknown_is_no_choice(self) -> None:
        assert list(rerank_requests(decided(), 0, 1, False)) == []
        assert options(decided(), 1) == {"bee", UNKNOWN}

    def test_it_knows_where_it_comes_from(self) -> None:
        sample = decided()
        [request] = rerank_requests(sample, 7, 2, True)
        assert (request.place, request.region, request.sample, request.label) == (7, 0, sample, "bee")
        assert request.crop.size == sample.image.size


class TestOptions:
    @pytest.mark.parametrize(
        ("sample", "allow_unknown", "expected"),
        [
            (decided(), True, {"bee", "doe", UNKNOWN}),
            (decided(), False, {"bee", "doe"}),
            (decided(label="ape"), True, {"bee", "doe", "ape", UNKNOWN}),
            (decided(possible=("bee", "cat", "ape")), True, {"bee", "cat", "ape"}),
            (decided(possible=("bee", "cat", UNKNOWN)), True, {"bee", "cat", UNKNOWN}),
            (decided(possible=("bee", "cat")), False, {"bee", "cat"}),
        ],
        ids=[
            "best two",
            "without unknown",
            "own answer",
            "possible",
            "possible or unknown",
            "possible alone",
        ],
    )
    def test_the_possible_or_else_the_best(
        self, sample: Sample, allow_unknown: bool, expected: set[str]
    ) -> None:
        assert options(sample, 2, allow_unknown) == expected

    def test_their_order_depends_on_the_pixels_alone(self) -> None:
        def order(seed: int) -> tuple[str, ...]:
            image = picture((200, 40, 40), seed=seed)
            [request] = rerank_requests(replace(decided(), image=image), 0, 4, True)
            return request.options

        assert order(1) == order(1)
        assert len({order(seed) for seed in range(20)}) > 10


class TestCertainty:
    def test_without_a_calibration(self) -> None:
        """The values add to how known it looks, 1: bee .4, doe .3, unknown no more than the least, 1e-6."""
        [request] = rerank_requests(decided(), 0, 2, True)
        given = dict(zip(request.options, request.retrieval.tolist(), strict=True))
        assert given == pytest.approx({"bee": 0.4, "doe": 0.3, UNKNOWN: 1e-6}, abs=1e-7)
        assert request.certainty == pytest.approx(0.4 / 0.700001)

    def test_with_one(self) -> None:
        """Known with .8: bee .32, doe .24, unknown .2."""
        [request] = rerank_requests(decided(known=0.8), 0, 2, True)
        given = dict(zip(request.options, request.retrieval.tolist(), strict=True))
        assert given == pytest.approx({"bee": 0.32, "doe": 0.24, UNKNOWN: 0.2}, abs=1e-6)
        assert request.certainty == pytest.approx(0.32 / 0.76)


class TestWhatATrialSpares:
    @pytest.fixture
    def request_of_doe(self) -> RerankRequest:
        [request] = rerank_requests(decided(label="doe"), 0, 2, True)
        return replace(request, certainty=0.55)

    def test_nothing_where_it_helps(self, request_of_doe: RerankRequest) -> None:
        assert skip_reason(TRIAL, request_of_doe) is None

    def test_all_where_it_does_not(self, request_of_doe: RerankRequest) -> None:
        reason = skip_reason(replace(TRIAL, helps=False), request_of_doe)
        assert reason == "it corrects 10 and spoils 2 of 40 photos here"

    def test_labels_of_which_it_spoils_more(self, request_of_doe: RerankRequest) -> None:
        [of_bee] = rerank_requests(decided(label="bee"), 0, 2, True)
        assert skip_reason(TRIAL, of_bee) == "it spoils more photos of 'bee' than it corrects"

    @pytest.mark.parametrize(("certainty", "asked"), [(0.599, True), (0.6, False), (0.61, False)])
    def test_those_that_retrieval_is_sure_of(
        self, request_of_doe: RerankRequest, certainty: float, asked: bool
    ) -> None:
        reason = skip_reason(TRIAL, replace(request_of_doe, certainty=certainty))
        assert (reason is None) is asked
        if not asked:
            assert reason == f"retrieval is sure enough, {certainty:.3f}: asking pays below 0.600"
