"""File names and labels come from outside: what to do before showing one."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with every character replaced that cannot be shown, or that a terminal would obey.

    Names that are not UTF-8 hold lone surrogates (PEP 383), which no output stream encodes.
    """
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def one_line(text: str) -> str:
    """The text as a single printable line."""
    return printable(" ".join(text.split()))
