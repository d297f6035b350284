"""The runs of an experiment side by side: mean and spread over the seeds of each cell of the grid."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from lmm_classifier.errors import ConfigError
from lmm_classifier.evaluation.tables import Table
from lmm_classifier.experiments.figures import FIGURES, RERANKED, Figure
from lmm_classifier.experiments.run import RUN, RUNS
from lmm_classifier.registry import did_you_mean

SCHEMA_VERSION = 1
_TIME = "milliseconds_per_photo"
_SHOWN = ("accuracy", "rejected", "{}_auroc", "{}_oscr", "{}_rejected", RERANKED, _TIME)
COMPARED: Mapping[str, Figure] = {**FIGURES, _TIME: Figure("ms/photo", less_is_better=True)}


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over the seeds: mean, standard deviation (None of one seed), and the values in seed order."""

    mean: float
    sd: float | None
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Cell:
    """A combination of the grid.

    Attributes:
        cell: key of the grid -> value.
        seeds: of the runs that are done.
        figures: name of COMPARED -> over these runs.
    """

    cell: Mapping[str, Any]
    seeds: tuple[int, ...]
    figures: Mapping[str, Spread]


@dataclass(frozen=True, slots=True)
class Comparison:
    """An experiment's cells, best first.

    Attributes:
        name: of the folder.
        about: what the experiment says of itself.
        keys: of the grid.
        sorted_by: name of the figure.
        cells: those with a run that is done.
        failed: name of a run -> why.
        missing: names of runs that are not finished.
    """

    name: str
    about: str
    keys: tuple[str, ...]
    sorted_by: str
    cells: tuple[Cell, ...]
    failed: Mapping[str, str]
    missing: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    @property
    def legend(self) -> str:
        """How the table reads."""
        by = COMPARED[self.sorted_by]
        best = "lowest" if by.less_is_better else "highest"
        return f"mean, and standard deviation over the seeds; {best} {by.heading} first"

    def table(self) -> Table:
        """The chief figures for people."""
        keys, shown = self._varying(), self.shown()
        rows = [
            (
                f"{number}",
                *(_text(cell.cell[key]) for key in keys),
                f"{len(cell.seeds)}",
                *(_cell(cell.figures.get(name), COMPARED[name]) for name in shown),
            )
            for number, cell in enumerate(self.cells, start=1)
        ]
        headings = (f"{COMPARED[x].heading}{' %' if COMPARED[x].percent else ''}" for x in shown)
        return Table(self.name, ("#", *_short(keys), "runs", *headings), tuple(rows))

    def _varying(self) -> tuple[str, ...]:
        """The keys that tell the cells apart."""
        values = {key: {_text(cell.cell[key]) for cell in self.cells} for key in self.keys}
        return tuple(key for key in self.keys if len(values[key]) > 1) or self.keys

    def shown(self) -> list[str]:
        """Figures of the table: of the unknowns, those of all together; reranked where anything was."""
        there = {
            name
            for cell in self.cells
            for name, found in cell.figures.items()
            if name != RERANKED or found.mean
        }
        group = next((group for group in ("all", "near", "far") if f"{group}_auroc" in there), "all")
        names = [name.format(group) for name in _SHOWN]
        names += [self.sorted_by] if self.sorted_by not in names else []
        return [name for name in names if name in there]

    def to_csv(self) -> str:
        """A row per cell: the keys, the number of runs, and mean and sd of every figure."""
        names = [name for name in COMPARED if any(name in cell.figures for cell in self.cells)]
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow([*self.keys, "runs", *(f"{name}{end}" for name in names for end in ("", "_sd"))])
        for cell in self.cells:
            found = [cell.figures.get(name) for name in names]
            numbers = [x for s in found for x in (("", "") if s is None else (s.mean, s.sd))]
            rows.writerow([*(_text(cell.cell[key]) for key in self.keys), len(cell.seeds), *numbers])
        return text.getvalue()


def compare(folder: Path, sort: str | None = None) -> Comparison:
    """Read the runs of an experiment.

    Args:
        folder: the output of `run_experiment`.
        sort: a name of COMPARED; None: OSCR where there are unknowns, else accuracy.

    Raises:
        ConfigError: no experiment, no run that is done, or no such figure.
    """
    asked = _json(folder / RUNS, "is no folder of an experiment: it has no")
    runs = {entry["name"]: _run(folder / entry["name"], entry["digest"]) for entry in asked["runs"]}
    done = [run for run in runs.values() if run and run["status"] == "done"]
    failed = {name: run["error"] for name, run in runs.items() if run and run["status"] == "failed"}
    if not done:
        reasons = f"; the first failed: {next(iter(failed.values()))}" if failed else ""
        raise ConfigError(f"{folder}: no run is finished{reasons}")
    cells: dict[str, list[Mapping[str, Any]]] = {}
    for run in done:
        cells.setdefault(json.dumps(run["cell"], sort_keys=True), []).append(run)
    found = [_over_seeds(sorted(of_cell, key=lambda run: run["seed"])) for of_cell in cells.values()]
    by = _sorting(found, sort)
    return Comparison(
        folder.resolve().name,
        asked["about"],
        tuple(asked["keys"]),
        by,
        tuple(sorted(found, key=lambda cell: _rank(cell.figures.get(by), COMPARED[by]))),
        failed,
        tuple(name for name, run in runs.items() if run is None),
    )


def _run(folder: Path, digest: str) -> dict[str, Any] | None:
    if not (folder / RUN).exists():
        return None
    body = _json(folder / RUN, "cannot be read:")
    return body if body.get("digest") == digest else None


def _json(path: Path, problem: str) -> dict[str, Any]:
    try:
        body: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"{path.parent} {problem} {path.name}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    return body


def _over_seeds(runs: Sequence[Mapping[str, Any]]) -> Cell:
    figures = [{**run["figures"], _TIME: run[_TIME]} for run in runs]
    spreads = {}
    for name in COMPARED:
        values = tuple(found[name] for found in figures if name in found)
        if values:
            spreads[name] = Spread(fmean(values), stdev(values) if len(values) > 1 else None, values)
    return Cell(runs[0]["cell"], tuple(run["seed"] for run in runs), spreads)


def _sorting(cells: Sequence[Cell], sort: str | None) -> str:
    there = tuple(name for name in COMPARED if any(name in cell.figures for cell in cells))
    if sort is None:
        return next((f"{g}_oscr" for g in ("all", "near", "far") if f"{g}_oscr" in there), "accuracy")
    if sort not in there:
        raise ConfigError(f"no run has the figure {sort!r}{did_you_mean(sort, there)}")
    return sort


def _rank(found: Spread | None, figure: Figure) -> float:
    if found is None:
        return math.inf
    return found.mean if figure.less_is_better else -found.mean


def _cell(found: Spread | None, figure: Figure) -> str:
    if found is None:
        return "-"
    factor, digits = (100, 1) if figure.percent else (1, 2 if figure is COMPARED[_TIME] else 3)
    spread = "" if found.sd is None else f" ±{factor * found.sd:.{digits}f}"
    return f"{factor * found.mean:.{digits}f}{spread}"


def _short(keys: Sequence[str]) -> tuple[str, ...]:
    """The last part of each key where that tells them apart."""
    last = [key.rpartition(".")[2] for key in keys]
    return tuple(last if len(set(last)) == len(last) else keys)


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(_text(part) for part in value.values())
    return value if isinstance(value, str) else json.dumps(value)
