from __future__ import annotations

import hashlib
from collections import Counter

import pytest

from lmm_classifier.corpus.split import split_of

HALVES = {"fit": 0.5, "test": 0.5}
THIRDS = {"fit": 0.6, "tune": 0.1, "test": 0.3}


def digest(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


@pytest.mark.parametrize(
    ("head", "split"),
    [("0" * 15, "fit"), ("7" + "f" * 12 + "00", "fit"), ("8" + "0" * 14, "test"), ("f" * 15, "test")],
)
def test_the_digest_is_a_position_between_zero_and_one(head: str, split: str):
    assert split_of(head + "0" * 49, HALVES) == split


def test_the_rest_of_the_digest_does_not_matter():
    assert split_of("a" * 15, THIRDS) == split_of("a" * 15 + "0" * 49, THIRDS)


def test_the_last_position_belongs_to_the_last_split_whatever_the_rounding():
    shares = {str(number): 0.1 for number in range(10)}  # ten tenths sum to less than 1 in floating point
    assert split_of("f" * 64, shares) == "9"


def test_the_shares_are_met():
    counts = Counter(split_of(digest(number), THIRDS) for number in range(20_000))
    for name, share in THIRDS.items():
        assert abs(counts[name] / 20_000 - share) < 0.015  # more than four standard errors


def test_a_larger_first_share_only_moves_images_into_it():
    for number in range(500):
        if split_of(digest(number), {"fit": 0.5, "test": 0.5}) == "fit":
            assert split_of(digest(number), {"fit": 0.6, "test": 0.4}) == "fit"


@pytest.mark.parametrize("shares", [{}, {"a": 0.9}, {"a": 1.1}, {"a": 1.0, "b": 0.0}, {"a": 1.5, "b": -0.5}])
def test_shares_must_be_positive_and_sum_to_one(shares: dict[str, float]):
    with pytest.raises(ValueError, match="sum to 1"):
        split_of("0" * 64, shares)


def test_a_digest_is_hexadecimal():
    with pytest.raises(ValueError, match="invalid literal"):
        split_of("no digest at all", HALVES)
