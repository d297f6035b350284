"""What Python sees of an evaluation; its figures are checked with the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmm_classifier import HybridClassifier, PipelineConfig
from lmm_classifier.api.build_index import build_index
from lmm_classifier.corpus.source import read_corpus
from lmm_classifier.errors import ConfigError, CorpusError
from lmm_classifier.evaluation.dataset import answerable_labels, evaluation_items, read_unknowns
from lmm_classifier.evaluation.evaluate import evaluate
from lmm_classifier.evaluation.page import drawings, write_evaluation
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.storage.progress import Progress
from synthetic import COLOURS, picture, write_corpus

FAKE = ModelSpec("fake")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    write_corpus(folder / "corpus")
    build_index(folder / "corpus", folder / "index", encoder=FAKE)
    build_index(folder / "corpus", folder / "index.npz", encoder=FAKE)
    write_corpus(folder / "known", seed=4000)
    return folder


def classifier(index: Path, **options: object) -> HybridClassifier:
    settings = {"encoder": FAKE, "rerank": {"enabled": False}, **options}
    retrieval = {"index_path": index, **settings.pop("retrieval", {})}
    return HybridClassifier(PipelineConfig(retrieval=retrieval, **settings))


def test_it_says_where_it_stands(work: Path) -> None:
    heard: list[Progress] = []
    found = evaluate(
        classifier(work / "index"), read_corpus(work / "known"), resamples=5, on_progress=heard.append
    )
    stages = list(dict.fromkeys(state.stage for state in heard))
    assert stages == ["looking for photos of the index", "answering the queries", "computing the figures"]
    assert [state.seen for state in heard if state.stage == stages[1]] == list(range(1, 19))
    assert found.known.accuracy.value == 1
    assert (found.unknown, found.rerank.accuracy) == ({}, None)


def test_without_a_reranker_there_is_no_curve_of_it(work: Path, tmp_path: Path) -> None:
    found = evaluate(classifier(work / "index"), read_corpus(work / "known"), resamples=5)
    assert found.rerank.by_share is None
    assert found.to_dict()["timings"]["seconds_per_reranked_photo"] is None
    assert [plot.heading for plot in drawings(found)] == ["Risk and coverage", "Reliability", "Known scores"]
    assert found.rerank.ceiling.value == found.known.accuracy.value
    write_evaluation(tmp_path / "report.html", "t", found)
    assert "share reranked" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_single_file_index_is_evaluated_like_a_folder(work: Path) -> None:
    known = read_corpus(work / "known")
    one, other = (
        evaluate(classifier(work / name), known, resamples=5, seed=3) for name in ("index", "index.npz")
    )
    assert one.known == other.known
    assert one.confidence == other.confidence
    with pytest.raises(CorpusError, match="18 photos are in the index too"):
        evaluate(classifier(work / "index.npz"), read_corpus(work / "corpus"))


def test_the_seed_moves_the_intervals_and_no_figure(work: Path, tmp_path: Path) -> None:
    known = read_corpus(work / "known")
    runs = [evaluate(classifier(work / "index"), known, resamples=20, seed=seed) for seed in (0, 0, 1)]
    confidences = [run.confidence["known"] for run in runs]
    assert confidences[0] == confidences[1] != confidences[2]
    assert confidences[0].brier.value == confidences[2].brier.value


def test_a_label_that_has_only_a_name_can_be_answered(work: Path) -> None:
    by_name = classifier(
        work / "index",
        encoder=ModelSpec("siglip"),
        labels=("red", "mauve"),
        retrieval={"text_weight": 0.5},
    )
    assert answerable_labels(by_name) == {"red", "mauve"}
    assert answerable_labels(classifier(work / "index", labels=("red", "mauve"))) == {"red"}
    assert answerable_labels(classifier(work / "index")) == set(COLOURS)


def test_a_folder_of_photos_without_labels_is_an_unknown_set(tmp_path: Path) -> None:
    (tmp_path / "far/walls").mkdir(parents=True)
    picture((1, 2, 3)).save(tmp_path / "far/a.png")
    picture((1, 2, 3)).save(tmp_path / "far/walls/b.png")
    (tmp_path / "far/notes.txt").write_text("x")
    corpus = read_unknowns(tmp_path / "far")
    assert [(item.path, item.label) for item in corpus.items] == [
        ("a.png", "unknown"),
        ("walls/b.png", "walls"),
    ]
    assert [file.path for file in corpus.skipped] == ["notes.txt"]


def test_a_label_named_unknown_cannot_be_told_from_the_answer(work: Path) -> None:
    with pytest.raises(ConfigError, match="label named 'unknown'"):
        evaluation_items(frozenset({"unknown", "red"}), read_corpus(work / "known"), {}, "near")


def test_far_and_near_are_kept_apart(work: Path, tmp_path: Path) -> None:
    for group, colour in (("near", (128, 128, 128)), ("far", (250, 250, 250))):
        (tmp_path / group).mkdir()
        for i in range(4):
            picture(colour, seed=i).save(tmp_path / group / f"{i}.png")
    found = evaluate(
        classifier(work / "index"),
        read_corpus(work / "known"),
        near=read_unknowns(tmp_path / "near"),
        far=read_unknowns(tmp_path / "far"),
        resamples=5,
    )
    assert {name: figures.queries for name, figures in found.unknown.items()} == {
        "near": 4,
        "far": 4,
        "all": 8,
    }
    assert [query.group for query in found.queries[-8:]] == ["near"] * 4 + ["far"] * 4
    assert found.to_dict()["counts"] == {"known": 18, "near": 4, "far": 4, "skipped": 0}
