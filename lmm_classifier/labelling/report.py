"""A self-contained HTML page of a run: figures, plots, labels, and galleries of what got which answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from lmm_classifier.labelling.run_manifest import RunManifest
from lmm_classifier.labelling.run_schema import Row
from lmm_classifier.labelling.run_store import LabellingRun
from lmm_classifier.reports import plots
from lmm_classifier.reports.html import picture_of, write_page
from lmm_classifier.reports.plots import Plot
from lmm_classifier.types import UNKNOWN, Float64Array, IntArray, required

REPORT = "report.html"
_PER_LABEL, _OF_UNKNOWNS = 8, 48  # photos of a gallery
_GALLERIES = 40  # labels with one, those of the most photos: a page of more loads slowly
_LEAST = 20  # photos of fewer have no distribution to draw
_GROUPS = {"known": "known", "uncertain": "all", "unknown": "near"}  # status -> colour of a plot
_SHOWN_FAILURES = 50


@dataclass(frozen=True, slots=True)
class _Shown:
    """A photo on the page."""

    row: Row
    picture: str | None
    trouble: str | None


@dataclass(frozen=True, slots=True)
class _Gallery:
    heading: str
    meaning: str
    total: int
    shown: tuple[_Shown, ...]


def write_report(run: LabellingRun, advice: str | None) -> Path:
    """Write the page of a finished run; returns it.

    Args:
        run: the run.
        advice: what the test of drift says; None where there is no calibration.

    Raises:
        RunError: a shard is damaged.
        IndexFolderError: the page cannot be written.
    """
    path = run.folder / REPORT
    counts = required(run.manifest.counts)
    known = {label: n for label, n in counts["labels"].items() if label != UNKNOWN}
    by_count = sorted(known, key=lambda label: (-known[label], label))
    write_page(
        path,
        "run.html.jinja",
        package="lmm_classifier.labelling",
        title=f"Labelling run {run.folder.name}",
        figures=_figures(run.manifest, advice),
        plots=tuple(_plots(run)),
        labels=[(label, known[label], known[label] / max(known.values())) for label in by_count],
        galleries=tuple(_galleries(run, by_count)),
        failures=tuple(_failures(run)),
        failed=sum(counts["errors"].values()),
        unknown=UNKNOWN,
    )
    return path


def _figures(manifest: RunManifest, advice: str | None) -> dict[str, str]:
    counts = required(manifest.counts)
    read = counts["photos"] - sum(counts["errors"].values())

    def part(n: int) -> str:
        return f"{n}" + (f" ({100 * n / read:.1f} %)" if read else "")

    found = {"photos": f"{counts['photos']}", "from": manifest.source}
    for status, name in (("known", "labelled"), ("uncertain", "labelled, uncertain"), ("unknown", "unknown")):
        found[name] = part(counts["status"].get(status, 0))
    found["decided by the reranker"] = part(counts["reranked"])
    if counts["degraded"]:
        found["reranker could not be asked"] = part(counts["degraded"])
    if failed := counts["photos"] - read:
        found["could not be read"] = f"{failed}"
    if advice is not None:
        found["photos like those calibrated on?"] = advice
    encoders = " and ".join(f"{encoder.name} {encoder.weights}".strip() for encoder in manifest.encoders)
    return found | {"index": manifest.index, "encoder": encoders, "started": manifest.started}


def _plots(run: LabellingRun) -> Iterator[Plot]:
    columns = run.columns("status", "closeness", "score")
    status = np.asarray(columns["status"].to_pylist(), object)
    for name, heading, x, meaning in (
        ("closeness", "How known the photos look", "closeness (0 to 1)", "How known the photos look to the "
         "classifier, as shares of those with the same outcome."),
        ("score", "How sure the answers are", "score of the answer (0 to 1)", "Scores of the answers, as "
         "shares of those with the same outcome."),
    ):  # fmt: skip
        values = columns[name].to_numpy().astype(np.float64)
        groups: dict[str, Float64Array] = {
            group: values[status == kind]
            for kind, group in _GROUPS.items()
            if np.sum(status == kind) >= _LEAST
        }
        if groups:
            names = {_GROUPS[kind]: f"{kind} ({int(np.sum(status == kind))})" for kind in _GROUPS}
            yield plots.histogram(meaning, groups, names, heading=heading, x=x)


def _galleries(run: LabellingRun, labels: Sequence[str]) -> Iterator[_Gallery]:
    chosen = list(_chosen(run, labels))
    rows = run.rows(int(row) for _, _, _, shown in chosen for row in shown)
    for heading, meaning, total, shown in chosen:
        photos = (rows[int(row)] for row in shown)
        yield _Gallery(
            heading, meaning, total, tuple(_Shown(p, *picture_of(run.root / p.path)) for p in photos)
        )


def _chosen(run: LabellingRun, labels: Sequence[str]) -> Iterator[tuple[str, str, int, IntArray]]:
    """Heading and meaning of each gallery, how many photos belong to it, and numbers of those to be shown."""
    columns = run.columns("label", "score", "status", "closeness")
    label, status = (np.asarray(columns[name].to_pylist(), object) for name in ("label", "status"))
    score, closeness = (columns[name].to_numpy().astype(np.float64) for name in ("score", "closeness"))

    def rising(members: IntArray, by: Float64Array) -> IntArray:
        return members[np.argsort(by[members], kind="stable")]

    unknown = rising(np.flatnonzero(label == UNKNOWN), closeness)
    yield (
        "Unknown",
        "Photos that no label fits, the least known first.",
        len(unknown),
        unknown[:_OF_UNKNOWNS],
    )
    doubtful = rising(np.flatnonzero(status == "uncertain"), score)
    yield ("Uncertain", "Best guesses, the least sure first.", len(doubtful), doubtful[: 2 * _PER_LABEL])
    for name in labels[:_GALLERIES]:
        members = rising(np.flatnonzero(label == name), score)
        spread = np.linspace(0, len(members) - 1, min(_PER_LABEL, len(members))).round().astype(int)
        yield name, "From the least sure answer to the surest.", len(members), members[spread]


def _failures(run: LabellingRun) -> Iterator[Row]:
    errors = run.columns("error_code")["error_code"]
    for number in np.flatnonzero(pc.is_valid(errors).to_numpy())[:_SHOWN_FAILURES]:
        yield run.row(int(number))
