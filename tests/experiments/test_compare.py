"""Comparing runs: from run.json files written here, so that every figure can be counted by hand."""

from __future__ import annotations

import csv
import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from html_page import HOSTILE, parsed
from lmm_classifier.errors import ConfigError
from lmm_classifier.experiments.compare import compare
from lmm_classifier.experiments.page import write_comparison
from lmm_classifier.reports.plots import dots

OSCR = {"knn": [0.8, 0.9, 0.7], "gda": [0.9, 0.95, 0.91], HOSTILE: [0.5, 0.6, 0.4]}


def figures(oscr: float) -> dict[str, float]:
    return {"accuracy": oscr / 2, "near_auroc": 0.9, "near_oscr": oscr, "aurc": 1 - oscr, "reranked": 0.0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three cells of three seeds; one run failed, one is not finished, one is of an older experiment."""
    runs = []
    for head, values in OSCR.items():
        for seed, oscr in enumerate(values):
            cell = {"calibrate.head": head, "retrieval.top_k": 10}
            entry = {
                "name": f"{list(OSCR).index(head)}.{seed}",
                "cell": cell,
                "seed": seed,
                "digest": f"{seed}",
            }
            runs.append(entry)
            body: dict[str, Any] = {
                "status": "done",
                **entry,
                "figures": figures(oscr),
                "milliseconds_per_photo": 2.0,
            }
            if (head, seed) == ("knn", 2):
                body = {"status": "failed", "error": HOSTILE, **entry}
            if (head, seed) == ("gda", 2):
                body["digest"] = "older"
            (tmp_path / entry["name"]).mkdir()
            (tmp_path / entry["name"] / "run.json").write_text(json.dumps(body), encoding="utf-8")
    asked = {"about": HOSTILE, "keys": ["calibrate.head", "retrieval.top_k"], "runs": runs}
    (tmp_path / "experiment.json").write_text(json.dumps(asked), encoding="utf-8")
    return tmp_path


def test_mean_and_spread_over_the_seeds_best_first(folder: Path) -> None:
    found = compare(folder)
    assert [cell.cell["calibrate.head"] for cell in found.cells] == ["gda", "knn", HOSTILE]
    assert (found.sorted_by, list(found.failed), found.missing) == ("near_oscr", ["0.2"], ("1.2",))
    gda, knn, _ = found.cells
    assert (gda.seeds, knn.seeds) == ((0, 1), (0, 1))
    assert gda.figures["near_oscr"].values == (0.9, 0.95)
    assert gda.figures["near_oscr"].mean == pytest.approx(0.925)
    assert gda.figures["near_oscr"].sd == pytest.approx(statistics.stdev([0.9, 0.95]))
    table = found.table()
    assert table.columns == ("#", "head", "runs", "accuracy %", "near AUROC", "near OSCR", "ms/photo")
    assert table.rows[1] == ("2", "knn", "2", "42.5 ±3.5", "0.900 ±0.000", "0.850 ±0.071", "2.00 ±0.00")


def test_sorted_by_another_figure(folder: Path) -> None:
    assert [c.cell["calibrate.head"] for c in compare(folder, "aurc").cells] == ["gda", "knn", HOSTILE]
    assert "lowest AURC first" in compare(folder, "aurc").legend
    assert compare(folder, "aurc").table().columns[-1] == "AURC"
    with pytest.raises(ConfigError, match="no run has the figure 'near_osc'; did you mean 'near_oscr'"):
        compare(folder, "near_osc")
    with pytest.raises(ConfigError, match="no run has the figure 'far_auroc'"):
        compare(folder, "far_auroc")


def test_files(folder: Path) -> None:
    paths = write_comparison(folder, compare(folder))
    assert [path.name for path in paths] == ["compare.json", "compare.csv", "compare.html"]
    body = json.loads(paths[0].read_bytes())
    assert body["cells"][0]["figures"]["accuracy"]["values"] == [0.45, 0.475]
    rows = list(csv.DictReader(paths[1].read_text(encoding="utf-8").splitlines()))
    assert [row["calibrate.head"] for row in rows] == ["gda", "knn", HOSTILE]
    assert float(rows[1]["near_oscr_sd"]) == body["cells"][1]["figures"]["near_oscr"]["sd"]
    page = parsed(paths[2])
    names = [tag for tag, _ in page.seen]
    assert names.count("svg") == 2
    assert set(names).isdisjoint({"script", "link", "img", "iframe"})
    assert not any("onerror" in attributes for _, attributes in page.seen)
    text = paths[2].read_text(encoding="utf-8")
    assert "http" not in text.replace("http-equiv", "")
    for said in ("0.850 ±0.071", "Failed 1", "Not finished 1", "near OSCR"):
        assert said in page.text
    write_comparison(folder, compare(folder))
    assert paths[2].read_text(encoding="utf-8") == text


def test_one_seed_has_no_spread(folder: Path) -> None:
    asked = json.loads((folder / "experiment.json").read_bytes())
    asked["runs"] = [run for run in asked["runs"] if run["seed"] == 0]
    (folder / "experiment.json").write_text(json.dumps(asked), encoding="utf-8")
    found = compare(folder)
    assert found.cells[0].figures["near_oscr"].sd is None
    assert found.table().rows[0][5] == "0.900"
    write_comparison(folder, found)


def test_dots_are_one_per_value_and_a_mean_per_row() -> None:
    few = dots("h", "d", "x", {"1": [0.1, 0.2]}).svg
    more = dots("h", "d", "x", {"1": [0.1, 0.2], "2": [0.3, 0.4, 0.5]}).svg
    assert few.count("<use") < more.count("<use")
    assert ">2</text>" in more
    assert len(dots("h", "d", "x", {f"{i}": [0.5] for i in range(60)}).svg) < 100_000


class TestRefusals:
    def test_what_is_no_experiment(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="is no folder of an experiment: it has no experiment.json"):
            compare(tmp_path)
        (tmp_path / "experiment.json").write_text("{", encoding="utf-8")
        with pytest.raises(ConfigError, match="experiment.json cannot be read"):
            compare(tmp_path)

    def test_nothing_done(self, folder: Path) -> None:
        asked = json.loads((folder / "experiment.json").read_bytes())
        asked["runs"] = [run for run in asked["runs"] if run["name"] in {"0.2", "1.2"}]
        (folder / "experiment.json").write_text(json.dumps(asked), encoding="utf-8")
        with pytest.raises(ConfigError, match="no run is finished; the first failed: "):
            compare(folder)
