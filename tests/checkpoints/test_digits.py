from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lmm_classifier.checkpoints.digits import (
    DIGIT_NAMES,
    HELD_OUT,
    KNOWN_NAMES,
    PICTURE_SIDE,
    SPLIT_SHARES,
    load_digit_scans,
    scans_in,
    write_digits,
)
from lmm_classifier.corpus.split import split_of


def test_every_scan_is_read_as_dark_ink_on_white_paper() -> None:
    scans = load_digit_scans()
    assert len(scans) == 1797
    assert {scan.name for scan in scans} == set(DIGIT_NAMES)
    for scan in scans:
        assert scan.pixels.shape == (8, 8)
        assert scan.pixels.dtype == np.uint8
        assert not scan.pixels.flags.writeable
    corners = np.stack([scan.pixels[[0, 0, 7, 7], [0, 7, 0, 7]] for scan in scans])
    assert corners.mean() > 245  # paper; a few strokes reach a corner


def test_known_scans_go_where_their_digest_says() -> None:
    for scan in load_digit_scans():
        assert scan.digest == hashlib.sha256(scan.pixels.tobytes()).hexdigest()
        if scan.known:
            assert scan.split == split_of(scan.digest, SPLIT_SHARES)


def test_splits_share_no_pixels() -> None:
    digests = {split: {scan.digest for scan in scans_in(split)} for split in SPLIT_SHARES}
    assert sum(len(part) for part in digests.values()) == len(set().union(*digests.values()))


def test_held_out_digits_are_only_queries() -> None:
    assert len(HELD_OUT) == 2
    assert {*HELD_OUT, *KNOWN_NAMES} == set(DIGIT_NAMES)
    assert {scan.split for scan in load_digit_scans() if not scan.known} == {"query"}


def test_known_split_sizes_follow_the_shares() -> None:
    known = [scan for scan in load_digit_scans() if scan.known]
    sizes = Counter(scan.split for scan in known)
    for split, share in SPLIT_SHARES.items():
        assert sizes[split] / len(known) == pytest.approx(share, abs=0.03)
    for split in SPLIT_SHARES:
        assert {scan.name for scan in known if scan.split == split} == set(KNOWN_NAMES)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="'test'"):
        scans_in("test")


def test_written_pictures_form_one_corpus_per_split(tmp_path: Path) -> None:
    write_digits(tmp_path)
    assert {folder.name for folder in tmp_path.iterdir()} == {*SPLIT_SHARES, "query_unknown"}
    assert {folder.name for folder in (tmp_path / "query_unknown").iterdir()} == HELD_OUT
    for split in SPLIT_SHARES:
        assert {folder.name for folder in (tmp_path / split).iterdir()} == set(KNOWN_NAMES)
    files = sorted(tmp_path.rglob("*.png"))
    assert len(files) == len({scan.digest for scan in load_digit_scans()})
    with Image.open(files[0]) as picture:
        assert (picture.size, picture.mode) == ((PICTURE_SIDE, PICTURE_SIDE), "L")
