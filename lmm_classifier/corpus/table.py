"""A table of paths and labels, CSV or JSONL -> Corpus. No image is opened here."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from lmm_classifier.corpus.corpus import Corpus, CorpusItem, SkippedFile
from lmm_classifier.errors import CorpusError


@dataclass(frozen=True, slots=True)
class _Row:
    line: int  # counted from 1, as editors do
    path: str
    label: str  # "" where none is asked for


def read_table(path: str | os.PathLike[str]) -> Corpus:
    """Read `path,label` rows from a `.csv` file with a header line, or objects from a `.jsonl` file.

    The text is UTF-8, with or without byte order mark; other columns or keys are ignored; blanks around
    a label are dropped. Relative image paths start at the folder of the table; absolute ones, and `..`,
    may lead anywhere the user may read, for the table is the user's own. Items keep the order of the
    rows. Whether an image exists shows when it is opened. A row that repeats an earlier one is skipped.

    Raises:
        CorpusError: the table cannot be read or is empty; or, naming file and line, a row is malformed,
            has no path or label, or contradicts the label of an earlier row.
    """
    table = Path(path)
    lines: dict[str, _Row] = {}
    skipped: list[SkippedFile] = []
    for row in _rows(table, ("path", "label")):
        first = lines.setdefault(row.path, row)
        if first.label != row.label:
            raise CorpusError(
                f"{table}:{row.line}: {row.path!r} has label {row.label!r} here and {first.label!r} "
                f"on line {first.line}; keep one of them"
            )
        if first is not row:
            reason = f"line {row.line} repeats line {first.line}"
            skipped.append(SkippedFile(row.path, "duplicate_row", reason))
    if not lines:
        raise CorpusError(f"{table}: no row in it; give one image and its label per line")
    items = tuple(CorpusItem(row.path, row.label) for row in lines.values())
    return Corpus(items, tuple(skipped), empty_labels=(), root=table.parent)


def read_paths(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The paths in a table, each once, in the order of the rows; else as `read_table`, without labels."""
    table = Path(path)
    paths = tuple(dict.fromkeys(row.path for row in _rows(table, ("path",))))
    if not paths:
        raise CorpusError(f"{table}: no row in it; give one image per line")
    return paths


def _rows(table: Path, keys: Sequence[str]) -> Iterator[_Row]:
    parser = _PARSERS.get(table.suffix.lower())
    if parser is None:
        raise CorpusError(f"{table}: a table of images ends with {' or '.join(_PARSERS)}")
    return parser(table, _text(table), keys)


def _text(table: Path) -> str:
    try:
        if table.exists() and not table.is_file():  # a pipe would block until somebody writes
            raise CorpusError(f"{table}: is not a file; give a .csv or .jsonl file")
        data = table.read_bytes()
    except OSError as error:
        raise CorpusError(f"{table}: the table cannot be read ({error.strerror}); check the path") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise CorpusError(f"{table}:{line}: the text is not UTF-8; save the table as UTF-8") from error


def _csv_rows(table: Path, text: str, keys: Sequence[str]) -> Iterator[_Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if any(header.count(key) != 1 for key in keys):
            named, each = " and ".join(keys), " each" if len(keys) > 1 else ""
            raise CorpusError(f"{table}:1: the header must name {named} once{each}, it is {header}")
        places = [header.index(key) for key in keys]
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise CorpusError(
                    f"{table}:{reader.line_num}: {len(cells)} cells under {len(header)} columns; "
                    "quote cells that hold a comma"
                )
            yield _row(table, reader.line_num, {k: cells[i] for k, i in zip(keys, places, strict=True)})
    except csv.Error as error:
        raise CorpusError(f"{table}:{reader.line_num}: not valid CSV ({error})") from error


def _jsonl_rows(table: Path, text: str, keys: Sequence[str]) -> Iterator[_Row]:
    # Not splitlines(): it also splits at separators that may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CorpusError(f"{table}:{number}: not valid JSON; give one object per line") from error
        if not isinstance(record, dict):
            wanted = ", ".join(f'"{key}": ...' for key in keys)
            raise CorpusError(f"{table}:{number}: not a JSON object; write {{{wanted}}}")
        yield _row(table, number, {key: record.get(key) for key in keys})


def _row(table: Path, line: int, found: Mapping[str, object]) -> _Row:
    for key, value in found.items():
        if not isinstance(value, str) or not value.strip():
            raise CorpusError(f"{table}:{line}: the {key} is missing, empty or not a text")
        try:
            os.fsencode(value)
        except UnicodeEncodeError as error:  # a lone surrogate that stands for no byte
            raise CorpusError(f"{table}:{line}: the {key} is no name that a file can have") from error
    return _Row(line, PurePath(str(found["path"])).as_posix(), str(found.get("label", "")).strip())


_Parser = Callable[[Path, str, Sequence[str]], Iterator[_Row]]
_PARSERS: dict[str, _Parser] = {".csv": _csv_rows, ".jsonl": _jsonl_rows}
TABLE_SUFFIXES = tuple(_PARSERS)
