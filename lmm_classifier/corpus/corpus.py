"""A labelled corpus as data: which images there are, what was left out and why. No file is opened here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from lmm_classifier.errors import ImageErrorCode

SkipCode = (
    ImageErrorCode
    | Literal[
        "no_label",  # lies directly in the root, where no folder names a label
        "hidden",  # its name starts with a dot
        "linked_folder",  # a link to a folder inside the corpus: read where it really is
        "duplicate_row",  # a table names the same image again, with the same label
        "not_answered",  # a step found nothing in it to look at
    ]
)
SKIP_CODES: tuple[SkipCode, ...] = tuple(code for part in get_args(SkipCode) for code in get_args(part))
NO_PHOTOS: tuple[SkipCode, ...] = ("unsupported_format", "hidden", "linked_folder")
"""What a listing leaves out by name or kind, refusing nothing."""


@dataclass(frozen=True, slots=True)
class CorpusItem:
    """One labelled image, not opened yet.

    Attributes:
        path: relative to `Corpus.root`, with `/` between the parts; a table may name an absolute path.
            A name that is not UTF-8 holds lone surrogates (PEP 383): `json.dumps` escapes them and
            `json.loads` gives them back; anything else that encodes strictly must `os.fsencode` first.
        label: the category, never empty; the same remark holds.
    """

    path: str
    label: str


@dataclass(frozen=True, slots=True)
class SkippedFile:
    """One entry that was seen and is not part of the corpus.

    Attributes:
        path: as for `CorpusItem`.
        code: one of SKIP_CODES, for programs.
        reason: a short text for people.
    """

    path: str
    code: SkipCode
    reason: str


@dataclass(frozen=True, slots=True)
class Corpus:
    """Labelled images and an account of everything else that was seen.

    Every file seen is in exactly one of `items` and `skipped`. A folder that is not entered (hidden,
    linked, unreadable) counts as one entry.

    Attributes:
        items: the images, in an order that depends on the corpus alone.
        skipped: what is no image of the corpus, in the same order.
        empty_labels: label folders without a single image, sorted.
        root: what relative paths start from.
    """

    items: tuple[CorpusItem, ...]
    skipped: tuple[SkippedFile, ...]
    empty_labels: tuple[str, ...]
    root: Path

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that have images, sorted bytewise."""
        return tuple(sorted({item.label for item in self.items}, key=os.fsencode))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is not wrong but worth a look, one line each."""
        lines = [
            f"label {label!r} has no images: add some or remove its folder" for label in self.empty_labels
        ]
        if len(self.labels) == 1:
            lines.append(
                f"the only label is {self.labels[0]!r}: a classifier needs at least two to choose from"
            )
        return tuple(lines)
