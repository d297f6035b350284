"""1,000 collections over one photo: the decisions, stacked against scikit-learn one by one; from one run.

    python benchmarks/collection_classifiers.py [--collections 1000] [--rounds 20]

The classifiers are random; the photo is encoded once before, as the step does it. Both ways give the same
probabilities, which is checked. Loading is measured apart: it happens once, and again for what is retrained.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image
from sklearn.linear_model import LogisticRegression

from lmm_classifier.collection.artifact import stem_of, write_linear
from lmm_classifier.collection.estimators import Linear
from lmm_classifier.collection.loaded_classifiers import StoreCache
from lmm_classifier.collection.step import Classify
from lmm_classifier.collection.training_set import EmbeddingPart
from lmm_classifier.models.loading import load_encoder
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.steps.embed import Embed
from lmm_classifier.types import Sample, required

ENCODER = ModelSpec("descriptor")


def main() -> None:
    """Time, check and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--collections", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        store = Path(name)
        models = write_store(store, options.collections)
        step = Classify(store=store)
        started = time.perf_counter()
        StoreCache(store).classifiers(None, (), "auto")
        loading = time.perf_counter() - started
        [sample] = Embed(ENCODER).run([Sample.from_image("photo", Image.new("RGB", (64, 64), (90, 20, 20)))])
        step.run([sample])
        whole, alone = [], []
        for _ in range(options.rounds):
            started = time.perf_counter()
            [answered] = step.run([sample])
            whole.append(time.perf_counter() - started)
            [vector] = next(iter(sample.embeddings.values()))
            started = time.perf_counter()
            one_by_one = [model.predict_proba(vector[None])[0, 1] for model in models]
            alone.append(time.perf_counter() - started)
    found = [m.probability for m in required(answered.memberships)]
    np.testing.assert_allclose(found, one_by_one, atol=1e-6)
    ms, slow = 1000 * median(whole), 1000 * median(alone)
    d = len(vector)
    print(
        f"{options.collections} collections, d = {d}, same probabilities; medians of {options.rounds} rounds"
    )
    print(f"opened in {loading:.2f} s, once")
    print(f"all decisions of one embedded photo: {ms:.1f} ms  target 30")
    print(f"scikit-learn one by one: {slow:.1f} ms, ratio {slow / ms:.1f}")


def write_store(store: Path, n: int) -> list[LogisticRegression]:
    """A store of random classifiers, and the same ones as scikit-learn has them."""
    contract = load_encoder(ENCODER).contract
    part = EmbeddingPart("descriptor", contract.dim, contract.fingerprint, "descriptor", "", "", "float32")
    random = np.random.default_rng(0)
    models, entries = [], {}
    for number in range(n):
        model = LogisticRegression()
        model.coef_, model.intercept_ = random.normal(size=(1, contract.dim)), random.normal(size=1)
        model.classes_ = np.asarray([False, True])
        models.append(model)
        version = write_linear(
            store,
            stem_of(str(number), "2026-01-01_000000"),
            Linear(model.coef_[0], float(model.intercept_[0])),
            collection=str(number),
            name=f"collection {number}",
            target="whole_image",
            parts=(part,),
        )
        entries[str(number)] = version.sealed()
    (store / "best_models.json").write_text(json.dumps(entries), encoding="utf-8")
    return models


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main()
