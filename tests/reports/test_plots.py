from __future__ import annotations

import re
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest

from html_page import HOSTILE
from lmm_classifier.metrics.confidence import reliability_bins, risk_coverage_curve
from lmm_classifier.metrics.open_set import roc_curve
from lmm_classifier.metrics.weighted import Curve
from lmm_classifier.reports.plots import POINTS, Line, Plot, curves, histogram, reliability, reranked


def scores(n: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    known = np.arange(n) < n // 2
    return np.clip(generator.normal(0.4 + 0.2 * known, 0.1), 0, 1), known


def roc(n: int, description: str = "what it shows") -> Plot:
    line = Line(roc_curve(*scores(n)), "near", "near")
    return curves("ROC", description, "across (share)", "up (share)", [line], {"near": (0.2, 0.5)})


def drawn() -> list[Plot]:
    values, known = scores(200)
    return [
        roc(200),
        curves("Risk", "d", "x", "y", [Line(risk_coverage_curve(values, known), "known", "knowns")], {}),
        reliability("d", reliability_bins(values, known)),
        histogram("d", {"known": values[known], "far": values[~known]}, {"known": "knowns", "far": "far"}),
        reranked("d", Curve(np.asarray([0, 0.1, 0.2]), np.asarray([0.5, 0.6, 0.6])), (0.1, "80 %")),
    ]


def test_a_plot_is_wellformed_in_the_colours_of_the_page_and_fetches_nothing() -> None:
    for plot in drawn():
        ElementTree.fromstring(plot.svg.replace("xlink:href", "href"))  # noqa: S314 - our own drawing
        assert "<style" not in plot.svg
        assert "http" not in plot.svg
        assert re.findall(r"#[0-9a-f]{6}", plot.svg) == []
        assert "currentColor" in plot.svg
        assert 'role="img" aria-label="' in plot.svg


def test_equal_figures_give_equal_bytes() -> None:
    assert [plot.svg for plot in drawn()] == [plot.svg for plot in drawn()]


def test_axes_are_named() -> None:
    assert ">across (share)</text>" in roc(50).svg
    assert ">up (share)</text>" in roc(50).svg


def test_many_queries_make_no_larger_a_plot() -> None:
    curve = roc_curve(*scores(100_000))
    assert len(curve.x) > 50 * POINTS
    assert len(roc(100_000).svg) < 60_000


def test_a_description_stays_text() -> None:
    assert "<script" not in roc(50, HOSTILE).svg


@pytest.mark.parametrize("values", [[0.0], [1.0], [0.5, 0.5]])
def test_hardly_any_photos(values: list[float]) -> None:
    flags = np.ones(len(values), bool)
    assert histogram("d", {"known": np.asarray(values)}, {"known": "knowns"}).svg
    assert reliability("d", reliability_bins(values, flags)).svg
    line = Line(Curve(np.asarray([1.0]), np.asarray([0.0])), "known", "knowns")
    assert curves("Risk", "d", "x", "y", [line], {}).svg
    assert reranked("d", Curve(np.asarray([0.0, 1.0]), np.asarray([1.0, 1.0])), None).svg


def test_matplotlib_is_imported_for_the_first_plot_and_not_before() -> None:
    code = "import sys, lmm_classifier.evaluation.page; print('matplotlib' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
