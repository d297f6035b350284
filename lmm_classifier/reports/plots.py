"""Line drawings of an evaluation as inline SVG, in the colours of the page, light or dark.

matplotlib draws, imported when the first plot is. Equal figures give equal bytes. No text of the photos or
labels goes into a plot.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from lmm_classifier.metrics.confidence import ReliabilityBin
from lmm_classifier.metrics.weighted import Curve, Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIZE = (4.6, 3.6)  # inches of 72 px
_ROW = 0.22  # inches of a row of dots
POINTS = 400  # of a line; more cannot be told apart
_SCORE_BINS = 40
# Colours that nothing else uses, to be exchanged for those of the page.
_INK, _GRID = "#010203", "#010204"
_COLOURS = {"known": "#010205", "near": "#010206", "far": "#010207", "all": "#010208"}
_PAGE = {
    _INK: "currentColor",
    _GRID: "var(--line)",
    **{colour: f"var(--plot-{group})" for group, colour in _COLOURS.items()},
}
_DASHES = {"known": "-", "near": "-", "far": "--", "all": ":"}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _GRID,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
}


@dataclass(frozen=True, slots=True)
class Plot:
    """A drawing: its heading, what it says in words, and the <svg> element."""

    heading: str
    description: str
    svg: Markup


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """A curve, the group it is of ("known", "near", "far" or "all"), and its name in the legend."""

    curve: Curve
    group: str
    name: str


def curves(
    heading: str,
    description: str,
    x: str,
    y: str,
    lines: Iterable[Line],
    marks: Mapping[str, tuple[float, float]],
) -> Plot:
    """Curves between shares.

    Args:
        heading: of the plot.
        description: what it says in words.
        x: title of the axis.
        y: title of the axis.
        lines: the curves.
        marks: group -> the point where the classifier's own decisions lie.
    """
    with _drawing() as (figure, axes):
        for line in lines:
            points = _thinned(line.curve)
            axes.plot(points.x, points.y, color=_COLOURS[line.group], ls=_DASHES[line.group], label=line.name)
        for group, point in marks.items():
            axes.plot(*point, "o", color=_COLOURS[group], markersize=5, clip_on=False)
        axes.set(xlabel=x, ylabel=y, xlim=(0, 1), ylim=(0, None))
        if axes.get_ylim()[1] > 0.7:  # a share that may reach 1, and not only by a line's margin
            axes.set_ylim(0, 1)
        axes.legend(loc="best")
        return Plot(heading, description, _svg(figure, heading, description))


def reliability(description: str, bins: Iterable[ReliabilityBin]) -> Plot:
    """Share of right answers against their mean score, a disc per bin, as large as its share of them."""
    heading = "Reliability"
    filled = [b for b in bins if b.answers]
    total = sum(b.answers for b in filled)
    with _drawing() as (figure, axes):
        axes.plot([0, 1], [0, 1], color=_INK, ls=":", lw=1, label="score = share right")
        score, right = np.asarray([(b.confidence, b.accuracy) for b in filled], np.float64).T
        axes.plot(score, right, color=_COLOURS["known"], lw=1)
        sizes = [10 + 300 * b.answers / total for b in filled]
        axes.scatter(
            score, right, s=sizes, color=_COLOURS["known"], alpha=0.6, clip_on=False, label="answers"
        )
        axes.set(
            xlabel="mean score of the answers (0 to 1)", ylabel="share of them that is right",
            xlim=(0, 1), ylim=(0, 1),
        )  # fmt: skip
        axes.legend(loc="best")
        return Plot(heading, description, _svg(figure, heading, description))


def histogram(
    description: str,
    scores: Mapping[str, Floats],
    names: Mapping[str, str],
    heading: str = "Known scores",
    x: str = "known score (0 to 1)",
) -> Plot:
    """How the scores of each group are distributed, in _SCORE_BINS steps of equal width over [0, 1].

    Args:
        description: what it says in words.
        scores: group -> float64 (n,), n at least 1.
        names: group -> what the legend calls it.
        heading: of the plot.
        x: title of the axis.
    """
    edges = np.linspace(0, 1, _SCORE_BINS + 1)
    with _drawing() as (figure, axes):
        for group, values in scores.items():
            counts, _ = np.histogram(values, edges)
            axes.stairs(
                100 * counts / len(values), edges, color=_COLOURS[group], ls=_DASHES[group],
                label=names[group], lw=1.5,
            )  # fmt: skip
        axes.set(xlabel=x, ylabel="photos of the group (%)", xlim=(0, 1), ylim=(0, None))
        axes.legend(loc="best")
        return Plot(heading, description, _svg(figure, heading, description))


def reranked(description: str, curve: Curve, enough: tuple[float, str] | None) -> Plot:
    """Accuracy against the share reranked, and the straight line of questions in no order.

    Args:
        description: what it says in words.
        curve: share and accuracy, both over all photos.
        enough: the share to mark, and its name in the legend.
    """
    heading = "Accuracy against share reranked"
    points, ends = _thinned(curve), [0, -1]
    with _drawing() as (figure, axes):
        axes.plot(100 * points.x, 100 * points.y, color=_COLOURS["all"], label="most doubtful first")
        axes.plot(100 * curve.x[ends], 100 * curve.y[ends], color=_INK, ls=":", lw=1, label="in no order")
        if enough is not None:
            share, name = enough
            accuracy = float(np.interp(share, curve.x, curve.y))
            axes.plot(
                100 * share,
                100 * accuracy,
                "o",
                color=_COLOURS["all"],
                markersize=6,
                clip_on=False,
                label=name,
            )
        axes.set(
            xlabel="photos shown to the reranker (%)", ylabel="accuracy over all photos (%)", xlim=(0, None)
        )
        axes.legend(loc="best")
        return Plot(heading, description, _svg(figure, heading, description))


def progress(heading: str, description: str, x: str, y: str, lines: Mapping[str, Curve]) -> Plot:
    """How a share, in [0, 1], changes as something is counted.

    Args:
        heading: of the plot.
        description: what it says in words.
        x: title of the axis.
        y: title of the axis.
        lines: name in the legend -> curve, whose x are counts; at most two.
    """
    with _drawing() as (figure, axes):
        for (name, curve), group in zip(lines.items(), ("known", "near"), strict=False):
            points = _thinned(curve)
            axes.plot(points.x, points.y, color=_COLOURS[group], ls=_DASHES[group], label=name)
        axes.set(xlabel=x, ylabel=y, xlim=(0, None), ylim=(None, 1))
        axes.legend(loc="best")
        return Plot(heading, description, _svg(figure, heading, description))


def dots(heading: str, description: str, x: str, rows: Mapping[str, Sequence[float]]) -> Plot:
    """A row of values per name, the first on top: a disc for each, a line at their mean.

    Args:
        heading: of the plot.
        description: what it says in words.
        x: title of the axis.
        rows: short name, such as a number -> values.
    """
    height = max(_SIZE[1] / 2, 0.9 + _ROW * len(rows))
    with _drawing((_SIZE[0], height)) as (figure, axes):
        for place, values in enumerate(rows.values()):
            axes.plot(values, [place] * len(values), "o", color=_COLOURS["known"], markersize=4, alpha=0.6)
            axes.plot([np.mean(values)], [place], "|", color=_INK, markersize=11, markeredgewidth=1.5)
        axes.set(xlabel=x, ylim=(len(rows) - 0.5, -0.5))
        axes.set_yticks(range(len(rows)), list(rows))
        return Plot(heading, description, _svg(figure, heading, description))


@contextmanager
def _drawing(size: tuple[float, float] = _SIZE) -> Iterator[tuple[Figure, Axes]]:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(size, layout="constrained")
        yield figure, figure.subplots()


def _thinned(curve: Curve) -> Curve:
    """At most POINTS of it, the first and the last among them."""
    if len(curve.x) <= POINTS:
        return curve
    kept = np.linspace(0, len(curve.x) - 1, POINTS).round().astype(int)
    return Curve(curve.x[kept], curve.y[kept])


def _svg(figure: Figure, heading: str, description: str) -> Markup:
    from matplotlib import rc_context

    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context({"svg.hashsalt": heading}):  # names within the drawing: their own in each
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    box = re.search(r'viewBox="([^"]+)"', drawing)
    drawing = re.sub(r"^<svg[^>]*>", "", drawing)
    drawing = re.sub(r"<style.*?</style>", "", drawing, flags=re.DOTALL)  # would style the page
    drawing = re.sub(r'<g id="[^"]*"', "<g", drawing)  # the same in every drawing, and never referred to
    drawing = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", drawing)
    for ours, page in _PAGE.items():
        drawing = drawing.replace(ours, page)
    attributes = f'role="img" aria-label="{escape(f"{heading}. {description}")}"'
    return Markup(f'<svg class="plot" viewBox="{box[1] if box else ""}" {attributes}>{drawing}')  # noqa: S704
