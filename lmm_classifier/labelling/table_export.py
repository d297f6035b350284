"""The table of a finished run: Parquet for programs, and CSV or JSON Lines where asked for."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from lmm_classifier.labelling.run_schema import SCHEMA, path_of
from lmm_classifier.labelling.run_store import RESULTS, LabellingRun
from lmm_classifier.storage.atomic_files import replace_large_file

CSV, JSONL = "results.csv", "results.jsonl"
_FLAT = ("path", "sha256", "label", "score", "status", "stage", "reason", "retrieval_label", "closeness",
         "p_value", "certainty", "route", "degraded", "error_code", "error_reason")  # fmt: skip
_NEAREST = ("nearest_path", "nearest_label", "nearest_similarity")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for one


def write_results(run: LabellingRun, *, as_csv: bool = False, as_jsonl: bool = False) -> tuple[Path, ...]:
    """Write all rows of a run, in order, with the columns of `rows.SCHEMA`; returns the files.

    The CSV has those that are one value, the possible labels joined by " | ", and the nearest neighbour; a
    text that a spreadsheet would take for a formula has an apostrophe in front. A line of the JSONL is an
    object with all columns, in which `path` is the name as Python has it.

    Raises:
        RunError: a shard is damaged.
        IndexFolderError: a file cannot be written.
    """
    formats = {RESULTS: (True, _parquet), CSV: (as_csv, _csv), JSONL: (as_jsonl, _jsonl)}
    written = []
    for name, (wanted, write) in formats.items():
        if wanted:
            replace_large_file(run.folder / name, partial(write, run), len(run))
            written.append(run.folder / name)
    return tuple(written)


def _parquet(run: LabellingRun, path: Path) -> None:
    with pq.ParquetWriter(path, SCHEMA, compression="zstd", write_page_checksum=True) as file:
        for table in run.tables():
            file.write_table(table)


def _csv(run: LabellingRun, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow((*_FLAT, "possible", *_NEAREST))
        for row in _rows(run):
            near = row["neighbours"][0] if row["neighbours"] else {}
            possible = " | ".join(row["possible"] or ())
            cells = [*(row[name] for name in _FLAT), possible, *(near.get(n[8:]) for n in _NEAREST)]
            lines.writerow(_harmless(cells))


def _jsonl(run: LabellingRun, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in _rows(run):
            row["path"] = path_of(row)
            del row["path_bytes"]
            row["timings"] = dict(row["timings"] or ())
            file.write(json.dumps(row, allow_nan=False) + "\n")


def _rows(run: LabellingRun) -> Iterator[dict[str, Any]]:
    for table in run.tables():
        yield from table.to_pylist()


def _harmless(cells: Iterable[Any]) -> list[Any]:
    return [f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell for cell in cells]
