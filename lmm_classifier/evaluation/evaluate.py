"""Run a classifier over photos whose right answers are known, and measure it from every side."""

from __future__ import annotations

import platform
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from lmm_classifier.api.classification import Classification
from lmm_classifier.api.hybrid_classifier import HybridClassifier
from lmm_classifier.corpus.corpus import NO_PHOTOS, Corpus, SkippedFile
from lmm_classifier.errors import CorpusError
from lmm_classifier.evaluation.dataset import (
    EvaluationItem,
    Unknowns,
    answerable_labels,
    evaluation_items,
    refuse_seen,
)
from lmm_classifier.evaluation.query import EvaluatedItem
from lmm_classifier.evaluation.results import Evaluation, UnknownFigures
from lmm_classifier.evaluation.summary import Measure
from lmm_classifier.index.manifest import read_manifest
from lmm_classifier.index.search import encoders_of, open_index
from lmm_classifier.metrics.bootstrap import LEVEL, RESAMPLES
from lmm_classifier.metrics.per_label import label_rows
from lmm_classifier.metrics.stages import measure
from lmm_classifier.steps.rerank import Rerank
from lmm_classifier.steps.retrieve import Retrieve
from lmm_classifier.storage.atomic_files import is_single_file
from lmm_classifier.storage.progress import OnProgress, Progress, ignore_progress
from lmm_classifier.types import UNKNOWN

_Answering = Callable[[HybridClassifier, Iterable[Path]], Iterator[Classification | SkippedFile]]
_LIBRARIES = (
    "lmm-classifier",
    "numpy",
    "scikit-learn",
    "torch",
    "transformers",
    "onnxruntime",
    "faiss-cpu",
    "pillow",
)


def evaluate(
    classifier: HybridClassifier,
    known: Corpus,
    *,
    near: Corpus | None = None,
    far: Corpus | None = None,
    out_of_index: Unknowns = "near",
    resamples: int = RESAMPLES,
    seed: int = 0,
    answering: _Answering = HybridClassifier.classify_files,
    on_progress: OnProgress = ignore_progress,
) -> Evaluation:
    """Classify the photos as they are read, and compare the answers with the truth.

    Args:
        classifier: what is evaluated, as it is configured.
        known: labelled photos; those whose label cannot be answered are unknowns.
        near: photos of no label of the index that resemble one; `read_unknowns` reads them.
        far: photos that resemble none.
        out_of_index: what photos of `known` are whose label the index lacks.
        resamples: of the intervals.
        seed: of the resamples.
        answering: how photos are classified; `EmbeddingCache` does it for several classifiers.
        on_progress: told where it stands.

    Raises:
        CorpusError: nothing known to measure, an unknown set that shows labels of the index, photos that are
            in the index, or none that can be read.
        LmmClassifierError: as the classifier raises it.
    """
    classifier.check_index()
    given: dict[Unknowns, Corpus | None] = {"near": near, "far": far}
    unknown = {group: corpus for group, corpus in given.items() if corpus is not None}
    labels = answerable_labels(classifier)
    asked = evaluation_items(labels, known, unknown, out_of_index)
    refuse_seen(classifier, asked, on_progress)
    classifier.load()
    started = time.perf_counter()
    queries, unread = _answered(answering(classifier, (q.photo for q in asked)), asked, on_progress)
    seconds = time.perf_counter() - started
    if all(query.group != "known" for query in queries):
        raise CorpusError(f"{known.root}: none of the known photos can be read, so nothing can be measured")
    on_progress(Progress("computing the figures"))
    sources = {"known": known} | dict[str, Corpus](unknown.items())
    skipped, left_out = _not_listed(sources.values())
    return Evaluation(
        **_figures(queries, Measure(resamples, seed), labels),
        queries=tuple(queries),
        skipped=(*skipped, *unread),
        left_out=tuple(left_out),
        subject=_subject(classifier, sources, labels),
        conditions=_conditions(queries, seconds, resamples, seed),
    )


def _figures(queries: Sequence[EvaluatedItem], measured: Measure, labels: frozenset[str]) -> dict[str, Any]:
    """What is measured of the answers, by the fields of `Evaluation`."""
    both = {"known": [query for query in queries if query.group == "known"]}
    if len(both["known"]) < len(queries):
        both["all"] = list(queries)
    truths = [query.truth for query in queries]
    answers = [query.answer for query in queries]
    return {
        "known": measured.known(both["known"]),
        "unknown": _against_unknowns(measured, queries),
        "confidence": {name: measured.confidence(some) for name, some in both.items()},
        "rerank": measured.rerank(queries),
        "stages": measure(answers, truths, sorted(labels)),
        "labels": label_rows(truths, [answer.label for answer in answers]),
    }


def _not_listed(corpora: Iterable[Corpus]) -> tuple[list[SkippedFile], list[SkippedFile]]:
    """Photos that the corpora lack, and what is no photo, with whole paths as the photos have them."""
    files = [replace(f, path=str(corpus.root / f.path)) for corpus in corpora for f in corpus.skipped]
    return [f for f in files if f.code not in NO_PHOTOS], [f for f in files if f.code in NO_PHOTOS]


def _answered(
    answers: Iterator[Classification | SkippedFile], asked: Sequence[EvaluationItem], on_progress: OnProgress
) -> tuple[list[EvaluatedItem], list[SkippedFile]]:
    queries: list[EvaluatedItem] = []
    skipped: list[SkippedFile] = []
    for done, (question, answer) in enumerate(zip(asked, answers, strict=True), start=1):
        if isinstance(answer, SkippedFile):
            skipped.append(answer)
        else:
            truth = question.label if question.group == "known" else UNKNOWN
            far = question.group == "far"
            queries.append(EvaluatedItem(question.photo, truth, answer, far=far, shows=question.label))
        on_progress(Progress("answering the queries", done, len(asked), len(skipped)))
    return queries, skipped


def _against_unknowns(measured: Measure, queries: Sequence[EvaluatedItem]) -> dict[str, UnknownFigures]:
    found = {}
    groups = [group for group in ("near", "far") if any(query.group == group for query in queries)]
    for group in groups:
        found[group] = measured.unknown([query for query in queries if query.group in {"known", group}])
    if len(groups) > 1:
        found["all"] = measured.unknown(queries)
    return found


def _subject(
    classifier: HybridClassifier, sources: Mapping[str, Corpus], labels: frozenset[str]
) -> dict[str, Any]:
    indexes = [step.index for step in classifier.pipeline.steps if isinstance(step, Retrieve)]
    cut = classifier.thresholds
    return {
        "sources": {name: str(corpus.root) for name, corpus in sources.items()},
        "settings": yaml.safe_load(classifier.config.to_yaml()),
        "indexes": [
            {
                "path": str(path),
                "digest": None if is_single_file(path) else read_manifest(path).digest,
                "images": len(open_index(path)),
                "encoders": {encoder.name: encoder.fingerprint for encoder in encoders_of(path)},
            }
            for path in indexes
        ],
        "answerable_labels": sorted(labels),
        "thresholds": None if cut is None else asdict(cut),
    }


def _conditions(
    queries: Sequence[EvaluatedItem], seconds: float, resamples: int, seed: int
) -> dict[str, Any]:
    steps: defaultdict[str, float] = defaultdict(float)
    for query in queries:
        for step, spent in query.answer.timings.items():
            steps[step] += spent
    reranked = sum(query.answer.used_reranker for query in queries)
    return {
        "intervals": {"level": LEVEL, "resamples": resamples, "seed": seed},
        "timings": {
            "seconds": seconds,
            "photos_per_second": len(queries) / seconds,
            "seconds_per_photo": {step: spent / len(queries) for step, spent in steps.items()},
            "seconds_per_reranked_photo": steps[Rerank.name] / reranked if reranked else None,
        },
        "versions": _versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = "none"
    return found
