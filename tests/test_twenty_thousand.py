"""A corpus of the size the package is for: built, queried and synchronised with a real model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from lmm_classifier.api.build_index import build_index
from lmm_classifier.api.classification import Classification
from lmm_classifier.api.hybrid_classifier import HybridClassifier
from lmm_classifier.config.pipeline import PipelineConfig, RetrievalSettings
from lmm_classifier.config.rerank import RerankSettings
from lmm_classifier.index.search import open_index
from lmm_classifier.models.loading import load_encoder
from lmm_classifier.models.spec import ModelSpec

SIGLIP = ModelSpec("siglip", "shipped:siglip-digits", dtype="float32")
LABELS, PER_LABEL = 20, 1000


def photo(label: int, seed: int) -> Image.Image:
    """A coarse pattern of its label, with noise: 16 x 16 px."""
    pattern = np.random.default_rng(label).integers(0, 256, (4, 4)).repeat(4, 0).repeat(4, 1)
    noise = np.random.default_rng(1_000 + seed).normal(0, 25, (16, 16))
    return Image.fromarray((pattern + noise).clip(0, 255).astype(np.uint8)).convert("RGB")


@pytest.mark.timeout(300)
def test_twenty_thousand_photos(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    for label in range(LABELS):
        (corpus / f"{label:02}").mkdir(parents=True)
        for i in range(PER_LABEL):
            photo(label, label * PER_LABEL + i).save(corpus / f"{label:02}/{i:04}.png", compress_level=1)
    report = build_index(corpus, tmp_path / "index", encoder=SIGLIP, batch_size=256)
    assert (report.indexed, report.encoded, report.skipped) == (20_000, 20_000, ())

    queries = [(label, photo(label, 10**6 + label * 10 + i)) for label in range(LABELS) for i in range(10)]
    settings = PipelineConfig(
        encoder=SIGLIP,
        retrieval=RetrievalSettings(
            index_path=tmp_path / "index", confidence_threshold=0.5, open_set_threshold=0.0
        ),
        rerank=RerankSettings(enabled=False),
    )
    answers = HybridClassifier(settings).classify_batch([np.asarray(image) for _, image in queries])
    vectors = load_encoder(SIGLIP).encode([image for _, image in queries])
    stored = np.concatenate(open_index(tmp_path / "index").vectors.parts)
    oracle = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(stored)
    nearest = oracle.kneighbors(vectors, return_distance=False)[:, 0]
    paths = open_index(tmp_path / "index").records.paths()
    assert all(isinstance(answer, Classification) for answer in answers)
    assert [answer.neighbours[0].path for answer in answers] == [paths[row] for row in nearest]
    right = np.mean(
        [answer.label == f"{label:02}" for answer, (label, _) in zip(answers, queries, strict=True)]
    )
    assert right > 0.8  # measured .88: the noise is strong; guessing gives .05

    for i in range(40):
        (corpus / f"00/{i:04}.png").unlink()
        photo(1, 2 * 10**6 + i).save(corpus / f"01/{i:04}.png")
    for i in range(20):
        photo(2, 3 * 10**6 + i).save(corpus / f"02/new{i}.png")
    report = build_index(corpus, tmp_path / "index", encoder=SIGLIP, batch_size=256)
    assert (report.indexed, report.encoded, report.removed) == (19_980, 60, 40)
    assert len(open_index(tmp_path / "index")) == 19_980
