"""File names, labels and answers come from outside: what to do before showing or keeping one."""

from __future__ import annotations

import unicodedata

# Part of how Persian, Hindi and emoji are written
_JOINERS = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"
SHOWN = 160  # characters of what somebody else wrote that an error repeats


def printable(text: str) -> str:
    """The text with every character replaced that cannot be shown, or that a terminal would obey.

    Names that are not UTF-8 hold lone surrogates (PEP 383), which no output stream encodes.
    """
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def one_line(text: str) -> str:
    """The text as a single printable line."""
    return printable(" ".join(text.split()))


def shown(said: str) -> str:
    """What somebody else wrote, as the beginning of one printable line."""
    line = one_line(said)
    return line if len(line) <= SHOWN else line[:SHOWN] + "..."


def plain_line(text: str) -> str:
    """The text as a single line to keep: what cannot be seen is left out instead of marked.

    Control characters count as white space, a run of which becomes one blank. What only steers how a text is
    shown (direction, byte order) is dropped but for JOINERS, and so are lone surrogates, which no file holds.
    """
    kept = (c for c in text if c in _JOINERS or unicodedata.category(c) not in {"Cf", "Cs"})
    return " ".join("".join(" " if unicodedata.category(c) == "Cc" else c for c in kept).split())
