"""`evaluate` as a shell runs it, its figures counted again by scikit-learn from the answers of `classify`."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score, average_precision_score, brier_score_loss, f1_score, roc_auc_score

from html_page import parsed
from shell import run
from synthetic import COLOURS, picture, write_corpus

Colour = tuple[int, int, int]
NEAR: dict[str, Colour] = {"brown": (190, 90, 20), "violet": (110, 50, 190)}
GREY = (128, 128, 128)
SETTINGS = (
    "encoder: {family: descriptor}\n"
    "retrieval: {index_path: index, top_k: 5, confidence_threshold: 0.7, open_set_threshold: 0.44}\n"
    "rerank: {family: fake}\n"
)


def failed_in_one_line(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 1, (result.stdout, result.stderr)
    assert (result.stdout, result.stderr.count("\n")) == ("", 1), result.stderr
    assert result.stderr.startswith("error: ")
    return result.stderr


def mixed(one: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (round((1 - share) * a + share * b) for a, b in zip(one, other, strict=True))
    return red, green, blue


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 24, 3), np.uint8))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of three colours; queries drift to another, near ones to red; far is noise."""
    folder = tmp_path_factory.mktemp("evaluate")
    write_corpus(folder / "corpus", per_label=10)
    built = run("index", "build", "corpus", "-o", "index", "--encoder", "descriptor", cwd=folder)
    assert built.returncode == 0, built.stderr
    others = dict(zip(COLOURS, [COLOURS["green"], COLOURS["red"], GREY], strict=True))
    for seed, (label, colour) in enumerate((COLOURS | NEAR).items()):
        place = folder / ("known" if label in COLOURS else "near") / label
        place.mkdir(parents=True)
        for i in range(12):
            towards = others.get(label, COLOURS["red"])
            picture(mixed(colour, towards, i / 24), seed=5000 + 100 * seed + i).save(place / f"{i}.png")
    (folder / "far").mkdir()
    for i in range(10):
        noise(i).save(folder / "far" / f"{i}.png")
    (folder / "settings.yaml").write_text(SETTINGS, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def found(work: Path) -> dict[str, Any]:
    result = run(
        "evaluate", "known", "-c", "settings.yaml", "--near", "near", "--far", "far", "-o", "out",
        "--corpus-root", "corpus", "--resamples", "200", cwd=work,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    assert "out/evaluation.json" in result.stdout
    assert "AUROC" in result.stdout
    body: dict[str, Any] = json.loads((work / "out/evaluation.json").read_text(encoding="utf-8"))
    return body


@pytest.fixture(scope="module")
def answers(work: Path) -> list[dict[str, Any]]:
    """What `classify` says of the same photos, with group, truth and known score worked out here."""
    lines = run("classify", "known", "near", "far", "-c", "settings.yaml", cwd=work).stdout.splitlines()
    answers: list[dict[str, Any]] = [json.loads(line) for line in lines]
    for answer in answers:
        answer["group"], *folders, _ = Path(answer["source"]).parts
        answer["truth"] = folders[0] if answer["group"] == "known" else "unknown"
        doubt = [c["probability"] or 0 for c in answer["candidates"] if c["label"] == "unknown"]
        answer["known_score"] = answer["closeness"] * (1 - sum(doubt))
    return answers


def of(answers: list[dict[str, Any]], *groups: str) -> list[dict[str, Any]]:
    return [answer for answer in answers if answer["group"] in groups]


def column(answers: list[dict[str, Any]], name: str) -> list[Any]:
    return [answer[name] for answer in answers]


class TestFigures:
    def test_there_is_something_to_measure(self, found: dict[str, Any]) -> None:
        assert found["counts"] == {"known": 36, "near": 24, "far": 10, "skipped": 0}
        assert 0.5 < found["known"]["accuracy"]["value"] < 1
        assert 0.5 < found["unknown"]["near"]["auroc"]["value"] <= 1
        assert 0 < found["rerank"]["share"]["value"] < 1

    def test_of_knowns(self, found: dict[str, Any], answers: list[dict[str, Any]]) -> None:
        known = of(answers, "known")
        truths, labels = column(known, "truth"), column(known, "label")
        figures = {name: entry["value"] for name, entry in found["known"].items() if name != "queries"}
        assert figures == pytest.approx(
            {
                "accuracy": accuracy_score(truths, labels),
                "macro_f1": f1_score(truths, labels, labels=sorted(COLOURS), average="macro"),
                "retrieval_accuracy": accuracy_score(truths, column(known, "retrieval_label")),
                "closed_accuracy": figures["closed_accuracy"],
                "rejected": labels.count("unknown") / 36,
            },
            abs=1e-9,
        )
        assert figures["closed_accuracy"] >= figures["accuracy"]

    @pytest.mark.parametrize("groups", [["near"], ["far"], ["near", "far"]])
    def test_of_unknowns(
        self, found: dict[str, Any], answers: list[dict[str, Any]], groups: list[str]
    ) -> None:
        some = of(answers, "known", *groups)
        known = np.asarray([answer["group"] == "known" for answer in some])
        scores = np.asarray(column(some, "known_score"))
        figures = found["unknown"][groups[0] if len(groups) == 1 else "all"]
        values = {name: entry["value"] for name, entry in figures.items() if name != "queries"}
        kept = np.sort(scores[known])[int(36 * 0.05)]  # 35 of 36 knowns reach it
        assert values.pop("oscr") <= found["known"]["closed_accuracy"]["value"]
        truths, labels = column(some, "truth"), column(some, "label")
        assert values == pytest.approx(
            {
                "rejected": np.mean([label == "unknown" for label in np.asarray(labels)[~known]]),
                "accuracy": accuracy_score(truths, labels),
                "macro_f1": f1_score(truths, labels, average="macro"),
                "auroc": roc_auc_score(known, scores),
                "aupr_known": average_precision_score(known, scores),
                "aupr_unknown": average_precision_score(~known, -scores),
                "fpr95": np.mean(scores[~known] >= kept),
            },
            abs=1e-9,
        )

    def test_of_confidence(self, found: dict[str, Any], answers: list[dict[str, Any]]) -> None:
        for name, some in (("known", of(answers, "known")), ("all", answers)):
            right = np.asarray([answer["label"] == answer["truth"] for answer in some])
            figures = found["confidence"][name]
            assert figures["brier"]["value"] == pytest.approx(
                brier_score_loss(right, column(some, "score")), abs=1e-9
            )
            assert set(figures["selective_accuracy"]) == {"0.5", "0.8", "0.9", "0.95"}
            assert sum(b["answers"] for b in figures["reliability"]) == len(some) == figures["queries"]

    def test_of_the_reranker(self, found: dict[str, Any], answers: list[dict[str, Any]]) -> None:
        asked = [answer for answer in answers if answer["used_reranker"]]
        assert found["rerank"]["share"]["value"] == pytest.approx(len(asked) / len(answers))
        had_it = [a for a in asked if a["truth"] in {c["label"] for c in a["candidates"] if c["probability"]}]
        expected = np.mean([a["label"] == a["truth"] for a in had_it])
        assert found["rerank"]["accuracy"]["value"] == pytest.approx(expected)
        before = np.asarray([a["retrieval_label"] == a["truth"] for a in answers])
        after = np.asarray([a["label"] == a["truth"] for a in answers])
        assert found["stages"]["corrections"] == (after & ~before).sum()
        assert found["stages"]["regressions"] == (before & ~after).sum()
        first = np.mean([a["truth"] == a["candidates"][0]["label"] for a in of(answers, "known")])
        recall = found["rerank"]["candidate_recall"]
        assert recall["1"]["value"] == pytest.approx(first)
        values = [entry["value"] for entry in recall.values()]
        assert values == sorted(values)

    def test_of_a_better_reranker_and_of_fewer_questions(
        self, found: dict[str, Any], answers: list[dict[str, Any]]
    ) -> None:
        rerank = found["rerank"]
        options = [{c["label"] for c in a["candidates"] if c["probability"]} for a in answers]
        asked = np.asarray(column(answers, "used_reranker"))
        before = np.asarray([a["retrieval_label"] == a["truth"] for a in answers])
        after = np.asarray([a["label"] == a["truth"] for a in answers])
        best = [a["truth"] in o if o else r for a, o, r in zip(answers, options, after, strict=True)]
        assert rerank["ceiling"]["value"] == pytest.approx(np.mean(best))
        assert rerank["ceiling_known"]["value"] == pytest.approx(np.mean(best[:36]))
        by_share = rerank["by_share"]
        evidence = [a["certainty"] or 1.0 for a in answers]
        assert [p["certainty"] for p in found["photos"]] == column(answers, "certainty")
        assert by_share["share"] == pytest.approx(np.arange(asked.sum() + 1) / 70)
        for share, accuracy in zip(by_share["share"], by_share["accuracy"], strict=True):
            sent = np.argsort(np.where(asked, evidence, 2), kind="stable")[: round(70 * share)]
            answered = before.copy()
            answered[sent] = after[sent]
            assert accuracy == pytest.approx(answered.mean())
        assert by_share["accuracy"][-1] == pytest.approx(found["stages"]["hybrid_accuracy"])
        assert (by_share["part"], by_share["enough"]) == (0.8, None)  # this reranker changes no answer

    def test_of_the_cost(self, found: dict[str, Any]) -> None:
        timings, share = found["timings"], found["rerank"]["share"]["value"]
        steps = timings["seconds_per_photo"]
        assert list(steps) == ["embed", "retrieve", "vote", "open_set", "rerank"]
        assert timings["seconds_per_reranked_photo"] == pytest.approx(steps["rerank"] / share)
        assert sum(steps.values()) < 1 / timings["photos_per_second"]

    def test_every_figure_lies_in_its_interval_and_photos_are_listed(self, found: dict[str, Any]) -> None:
        estimates = [
            e for figures in found["unknown"].values() for e in figures.values() if e not in (10, 24, 34)
        ]
        estimates += [e for e in found["known"].values() if isinstance(e, dict)]
        assert all(0 <= e["low"] <= e["value"] <= e["high"] <= 1 for e in estimates)
        assert [p["group"] for p in found["photos"]] == ["known"] * 36 + ["near"] * 24 + ["far"] * 10
        assert {p["shows"] for p in found["photos"]} == {*COLOURS, *NEAR, None}
        assert sum(entry["queries"] for entry in found["confusion"]) == 70
        assert [row["label"] for row in found["labels"]] == [*sorted(COLOURS), "unknown"]
        assert found["thresholds"]["open_set"] == 0.44
        assert found["versions"]["lmm-classifier"] == "0.1.0"
        assert found["indexes"][0]["images"] == 30


class TestPage:
    def test_is_self_contained_with_plots_and_galleries(self, work: Path, found: dict[str, Any]) -> None:
        page = (work / "out/report.html").read_text(encoding="utf-8")
        tags = parsed(work / "out/report.html")
        names = [tag for tag, _ in tags.seen]
        assert set(names).isdisjoint({"script", "link", "iframe", "object", "image"})
        assert names.count("svg") == 6
        assert "Content-Security-Policy" in page
        assert re.findall(r'(?:src|href)="(?!data:|#)', page) == []
        assert re.findall(r"url\((?!#)", page) == []
        assert "http" not in page.replace("http-equiv", "")
        for said in (
            "ROC", "OSCR", "Risk and coverage", "Reliability", "Known scores",
            "Accuracy against share reranked", "photos shown to the reranker (%)", "Cost",
            "share of the unknowns accepted", "share of the knowns accepted", "photos of the group (%)",
            "coverage: share of the photos answered", "mean score of the answers (0 to 1)",
            "Confusion matrix", "Labels", "Known photos given a wrong label", "Unknown photos accepted",
            "Known photos called unknown",
        ):  # fmt: skip
            assert said in tags.text
        auroc = found["unknown"]["near"]["auroc"]["value"]
        assert f"near {auroc:.3f}" in tags.text

    def test_every_plot_has_a_text_alternative_and_names_of_its_own(self, work: Path) -> None:
        page = (work / "out/report.html").read_text(encoding="utf-8")
        labels = re.findall(r'<svg class="plot"[^>]*role="img" aria-label="([^"]{40,})"', page)
        assert len(labels) == len(set(labels)) == 6
        ids = re.findall(r'\bid="([^"]+)"', page)
        assert len(ids) == len(set(ids))
        assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)

    def test_the_same_answers_make_the_same_plots(self, work: Path, found: dict[str, Any]) -> None:
        again = run(
            "evaluate", "known", "-c", "settings.yaml", "--near", "near", "--far", "far", "-o", "again",
            "--corpus-root", "corpus", "--resamples", "200", cwd=work,
        )  # fmt: skip
        assert again.returncode == 0
        pages = [(work / folder / "report.html").read_text(encoding="utf-8") for folder in ("out", "again")]
        times = re.compile(r"[\d.]+ ms")
        assert times.sub("", pages[0]) == times.sub("", pages[1])


def test_knowns_alone(work: Path) -> None:
    result = run("evaluate", "known", "-c", "settings.yaml", "--json", "--resamples", "10", cwd=work)
    body = json.loads(result.stdout)
    assert (result.returncode, body["unknown"], list(body["confidence"])) == (0, {}, ["known"])
    assert not (work / "evaluation").exists()
    assert run("evaluate", "known", "-c", "settings.yaml", "-o", "alone", cwd=work).returncode == 0
    names = [tag for tag, _ in parsed(work / "alone/report.html").seen]
    assert names.count("svg") == 4


def test_labels_that_the_index_lacks_are_unknown(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "known", tmp_path / "mixed")
    shutil.copytree(work / "near", tmp_path / "mixed", dirs_exist_ok=True)
    command = ("evaluate", tmp_path / "mixed", "-c", "settings.yaml", "--json", "--resamples", "10")
    assert json.loads(run(*command, cwd=work).stdout)["counts"]["near"] == 24
    assert json.loads(run(*command, "--strangers", "far", cwd=work).stdout)["counts"]["far"] == 24
    rows = [f"{label}/{i}.png,{label}" for label in ("red", "brown") for i in range(4, 8)]
    table = tmp_path / "mixed/table.csv"
    table.write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    body = json.loads(run("evaluate", table, *command[2:], cwd=work).stdout)
    assert body["counts"] == {"known": 4, "near": 4, "far": 0, "skipped": 0}


def test_a_closed_list_of_labels_makes_the_others_unknown(work: Path) -> None:
    (work / "closed.yaml").write_text("labels: [red, green]\n" + SETTINGS, encoding="utf-8")
    body = json.loads(
        run("evaluate", "known", "-c", "closed.yaml", "--json", "--resamples", "10", cwd=work).stdout
    )
    assert (body["counts"]["known"], body["counts"]["near"]) == (24, 12)
    assert body["answerable_labels"] == ["green", "red"]


def test_unreadable_photos_are_listed_counted_and_make_it_2(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "known", tmp_path / "known")
    (tmp_path / "known/red/broken.png").write_bytes(b"no photo")
    (tmp_path / "known/red/notes.txt").write_text("x")
    result = run("evaluate", tmp_path / "known", "-c", "settings.yaml", "-o", tmp_path / "out", cwd=work)
    assert result.returncode == 2
    assert "1 files that are not photos are left out" in result.stderr
    assert re.search(r"skipped: .*broken\.png: .* \[unsupported_format\]", result.stderr)
    body = json.loads((tmp_path / "out/evaluation.json").read_text(encoding="utf-8"))
    assert body["counts"] == {"known": 36, "near": 0, "far": 0, "skipped": 1}
    assert [Path(entry["path"]).name for entry in body["skipped"]] == ["broken.png"]
    assert [Path(entry["path"]).name for entry in body["left_out"]] == ["notes.txt"]


class TestRefusals:
    def test_unknowns_that_are_known(self, work: Path) -> None:
        message = failed_in_one_line(
            run("evaluate", "known", "-c", "settings.yaml", "--near", "corpus", cwd=work)
        )
        assert (
            "corpus: an unknown set must show no label of the index, it shows 'blue', 'green', 'red'"
            in message
        )

    def test_photos_of_the_index(self, work: Path, tmp_path: Path) -> None:
        message = failed_in_one_line(run("evaluate", "corpus", "-c", "settings.yaml", cwd=work))
        assert "30 photos are in the index too: corpus/blue/0.png (as blue/0.png)" in message
        assert "27 more" in message
        (tmp_path / "far").mkdir()
        shutil.copy(work / "corpus/red/3.png", tmp_path / "far/innocent.png")
        message = failed_in_one_line(
            run("evaluate", "known", "-c", "settings.yaml", "--far", tmp_path / "far", cwd=work)
        )
        assert "innocent.png (as red/3.png)" in message

    def test_a_photo_that_is_both_known_and_unknown(self, work: Path, tmp_path: Path) -> None:
        (tmp_path / "near").mkdir()
        shutil.copy(work / "known/blue/3.png", tmp_path / "near/x.png")
        message = failed_in_one_line(
            run("evaluate", "known", "-c", "settings.yaml", "--near", tmp_path / "near", cwd=work)
        )
        assert "known/blue/3.png (known)" in message
        assert "are the same file" in message

    def test_nothing_known(self, work: Path) -> None:
        message = failed_in_one_line(run("evaluate", "near", "-c", "settings.yaml", cwd=work))
        assert "its labels are 'brown', 'violet', those of the index 'blue', 'green', 'red'" in message

    def test_nothing_readable(self, work: Path, tmp_path: Path) -> None:
        (tmp_path / "k/red").mkdir(parents=True)
        (tmp_path / "k/red/a.png").write_bytes(b"no photo")
        message = failed_in_one_line(run("evaluate", tmp_path / "k", "-c", "settings.yaml", cwd=work))
        assert "none of the known photos can be read" in message

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["missing"], "there is no such file or folder"),
            (["known", "--near", "missing"], "there is no such file or folder"),
            (["known", "--far", "empty"], "no image in it"),
            (["known", "-o", "settings.yaml"], "settings.yaml is a file; give --output a folder"),
            (["known", "-o", "settings.yaml/out"], "settings.yaml"),
            (["known", "--resamples", "0"], "resamples"),
            (["known", "--strangers", "odd"], "strangers"),
            (["known", "-c", "missing.yaml"], "missing.yaml"),
        ],
    )
    def test_arguments(self, work: Path, arguments: list[str], says: str) -> None:
        (work / "empty").mkdir(exist_ok=True)
        config = [] if "-c" in arguments else ["-c", "settings.yaml"]
        assert says in failed_in_one_line(run("evaluate", *arguments, *config, cwd=work))


def test_hostile_names_reach_neither_page_nor_terminal(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "known", tmp_path / "known")
    odd = tmp_path / "known" / os.fsdecode(b"<script>\x1b[31m\xff")
    odd.mkdir()
    picture((240, 230, 30), seed=1).save(odd / "a.png")
    (odd / "broken\x1b.png").write_bytes(b"no photo")
    result = run("evaluate", tmp_path / "known", "-c", "settings.yaml", "-o", tmp_path / "out", cwd=work)
    assert result.returncode == 2
    assert "\x1b" not in result.stdout + result.stderr
    tags = parsed(tmp_path / "out/report.html")
    assert "script" not in {tag for tag, _ in tags.seen}
    assert "\x1b" not in tags.text
    assert json.loads((tmp_path / "out/evaluation.json").read_text(encoding="utf-8"))["counts"]["near"] == 1
