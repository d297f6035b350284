from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from html_page import HOSTILE, parsed
from lmm_classifier import HybridClassifier, PipelineConfig
from lmm_classifier.evaluate.query import Query
from lmm_classifier.evaluate.report import write_report
from lmm_classifier.indexing import index_corpus
from lmm_classifier.models.base import ModelSpec
from lmm_classifier.result import Candidate
from synthetic import COLOURS, picture, write_corpus

FAKE = ModelSpec("fake")


@pytest.fixture
def queries(tmp_path: Path) -> list[Query]:
    index_corpus(write_corpus(tmp_path / "corpus"), tmp_path / "index", encoder=FAKE)
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
        Query(photo, truth, answer) for photo, truth, answer in zip(photos, COLOURS, answers, strict=True)
    ]


def test_page_is_self_contained_and_shows_figures_matrix_and_gallery(
    tmp_path: Path, queries: list[Query]
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


def test_hostile_names_change_no_tag_and_no_attribute(tmp_path: Path, queries: list[Query]) -> None:
    def named(label: str) -> list[Query]:
        return [
            Query(
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


def test_gallery_is_limited_per_kind_and_says_so(tmp_path: Path, queries: list[Query]) -> None:
    write_report(tmp_path / "r.html", "t", {}, queries * 10, tmp_path / "corpus", per_kind=4)
    assert "4 shown" in parsed(tmp_path / "r.html").text
