"""compare.json, compare.csv and compare.html."""

from __future__ import annotations

import json
from pathlib import Path

from lmm_classifier.experiments.compare import COMPARED, Comparison
from lmm_classifier.reports import plots
from lmm_classifier.reports.html import write_page
from lmm_classifier.reports.plots import Plot
from lmm_classifier.storage.atomic_files import replace_file


def write_comparison(folder: Path, found: Comparison) -> tuple[Path, ...]:
    """Write the three files into the folder; returns their paths.

    Raises:
        IndexFolderError: they cannot be written there.
    """
    body = json.dumps(found.to_dict(), indent=2, allow_nan=False)
    replace_file(folder / "compare.json", body.encode() + b"\n")
    replace_file(folder / "compare.csv", found.to_csv().encode("utf-8", "replace"))
    write_page(
        folder / "compare.html",
        "compare.html.jinja",
        package="lmm_classifier.experiments",
        title=f"Experiment {found.name}",
        about=found.about,
        table=found.table(),
        legend=found.legend,
        plots=tuple(_drawing(found, name) for name in dict.fromkeys((found.sorted_by, "accuracy"))),
        failed=found.failed,
        missing=found.missing,
    )
    return tuple(folder / f"compare.{suffix}" for suffix in ("json", "csv", "html"))


def _drawing(found: Comparison, name: str) -> Plot:
    figure = COMPARED[name]
    factor = 100 if figure.percent else 1
    rows = {
        f"{number}": [factor * value for value in cell.figures[name].values]
        for number, cell in enumerate(found.cells, start=1)
        if name in cell.figures
    }
    better = "less" if figure.less_is_better else "more"
    return plots.dots(
        figure.heading,
        f"{figure.heading} of each row of the table: a small disc per seed, a line at their mean; "
        f"{better} is better.",
        f"{figure.heading} (%)" if figure.percent else figure.heading,
        rows,
    )
