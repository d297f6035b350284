from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from html_page import HOSTILE, Tags, parsed
from lmm_classifier import HybridClassifier, PipelineConfig
from lmm_classifier.api.build_index import build_index
from lmm_classifier.api.classification import Candidate
from lmm_classifier.evaluation.galleries import write_report
from lmm_classifier.evaluation.query import EvaluatedItem
from lmm_classifier.metrics.per_label import label_rows
from lmm_classifier.models.spec import ModelSpec
from synthetic import COLOURS, picture, write_corpus

FAKE = ModelSpec("fake")


@pytest.fixture
def queries(tmp_path: Path) -> list[EvaluatedItem]:
    build_index(write_corpus(tmp_path / "corpus"), tmp_path / "index", encoder=FAKE)
    settings = PipelineConfig(
        encoder=FAKE,
        retrieval={"index_path": tmp_path / "index", "confidence_threshold": 1},
        rerank={"family": "fake"},
    )
    photos = []
    for i, colour in enumerate(COLOURS.values()):
        photos.append(tmp_path / f"{i}.png")
        picture(colour, seed=700 + i).save(photos[-1])
    answers = HybridClassifier(settings).classify_batch(photos)
    return [
        EvaluatedItem(photo, truth, answer)
        for photo, truth, answer in zip(photos, COLOURS, answers, strict=True)
    ]


def test_page_is_self_contained_and_shows_figures_matrix_and_gallery(
    tmp_path: Path, queries: list[EvaluatedItem]
) -> None:
    write_report(tmp_path / "r.html", "A title", {"accuracy": "97.0 %"}, queries, tmp_path / "corpus")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    tags = parsed(tmp_path / "r.html")
    assert "accuracy97.0 %" in tags.text
    assert {tag for tag, _ in tags.seen}.isdisjoint({"script", "link", "iframe", "object"})
    assert "Content-Security-Policy" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    pictures = re.findall(r'src="data:image/webp;base64,([^"]+)"', page)
    assert len(pictures) == 3 * (1 + 5)  # each query and its five nearest
    for data in pictures:
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (24, 24)
    for query in queries:
        assert query.answer.reason in tags.text


def test_hostile_names_change_no_tag_and_no_attribute(tmp_path: Path, queries: list[EvaluatedItem]) -> None:
    def named(label: str) -> list[EvaluatedItem]:
        return [
            EvaluatedItem(
                q.photo,
                label,
                replace(
                    q.answer,
                    label=label,
                    retrieval_label=label,
                    reason=label,
                    degraded=label,
                    candidates=(Candidate(label, 0.5, 0.5),),
                    neighbours=tuple(replace(n, label=label) for n in q.answer.neighbours),
                ),
            )
            for q in queries
        ]

    write_report(tmp_path / "good.html", "t", {"a": "b"}, named("good"), tmp_path / "corpus")
    write_report(tmp_path / "bad.html", HOSTILE, {HOSTILE: HOSTILE}, named(HOSTILE), tmp_path / "corpus")
    assert parsed(tmp_path / "good.html").seen == parsed(tmp_path / "bad.html").seen
    assert HOSTILE in parsed(tmp_path / "bad.html").text
    write_report(tmp_path / "odd.html", "t", {}, named("a\udcff\x1b\u202e"), tmp_path / "corpus")
    assert "\x1b" not in parsed(tmp_path / "odd.html").text


def test_gallery_is_limited_per_kind_and_says_so(tmp_path: Path, queries: list[EvaluatedItem]) -> None:
    write_report(tmp_path / "r.html", "t", {}, queries * 10, tmp_path / "corpus", per_kind=4)
    assert "4 shown" in parsed(tmp_path / "r.html").text


def test_hundreds_of_labels_make_a_table_of_mistakes_and_no_matrix(
    tmp_path: Path, queries: list[EvaluatedItem]
) -> None:
    many = [replace(queries[0], truth=f"label {i % 300}") for i in range(600)]
    many += [replace(queries[0], truth="label 7")] * 50
    rows = label_rows([q.truth for q in many], [q.answer.label for q in many])
    write_report(tmp_path / "r.html", "t", {}, many, None, per_kind=1, labels=rows)
    tags = parsed(tmp_path / "r.html")
    assert "Confusion matrix" not in tags.text
    assert "Most frequent mistakes 300 pairs of truth and answer, 30 shown" in tags.text
    assert "label 7blue52100.0 %" in tags.text.replace("\n", "")
    assert (tmp_path / "r.html").stat().st_size < 200_000
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<details>" in page  # closed: 301 rows
    assert len(re.findall(r'<th scope="row">label ', page)) == 300


def test_photos_that_are_gone_are_shown_as_missing_and_say_why(
    tmp_path: Path, queries: list[EvaluatedItem]
) -> None:
    queries[0].photo.unlink()
    for path in (tmp_path / "corpus/red").iterdir():
        path.unlink()
    write_report(tmp_path / "r.html", "t", {}, queries, tmp_path / "corpus")
    tags = parsed(tmp_path / "r.html")
    assert tags.text.count("there is no such file") == 1 + 5
    assert [tag for tag, _ in tags.seen].count("img") == 3 * 6 - 6


def test_without_the_folder_of_the_index_neighbours_are_names_alone(
    tmp_path: Path, queries: list[EvaluatedItem]
) -> None:
    write_report(tmp_path / "r.html", "t", {}, queries, None)
    tags = parsed(tmp_path / "r.html")
    assert [tag for tag, _ in tags.seen].count("img") == 3
    assert f"{queries[0].answer.neighbours[0].similarity:.3f}" in tags.text


def test_hostile_labels_in_the_tables(tmp_path: Path, queries: list[EvaluatedItem]) -> None:
    def page(label: str) -> Tags:
        named = [replace(q, truth=label, shows=label) for q in queries]
        rows = label_rows([label], [label])
        write_report(tmp_path / "r.html", "t", {}, named, None, labels=rows)
        return parsed(tmp_path / "r.html")

    assert page("good").seen == page(HOSTILE).seen
