"""A pipeline over a folder of photos, a batch at a time against photo by photo; the ratio from one run.

    python benchmarks/steps.py [--photos 200] [--rounds 5]

The steps are embed, retrieve, vote and open_set with the shipped SigLIP and an index of its digits; the
photos are scans that are not in the index. Both ways give the same answers, which is checked.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from statistics import median

import numpy as np

from lmm_classifier.api.build_index import build_index
from lmm_classifier.checkpoints.digits import write_digits
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.pipeline import Pipeline
from lmm_classifier.steps.embed import Embed
from lmm_classifier.steps.open_set import OpenSet
from lmm_classifier.steps.retrieve import Retrieve
from lmm_classifier.steps.vote import Vote
from lmm_classifier.types import Sample, required

TINY = ModelSpec("siglip", "shipped:siglip-digits", dtype="float32")
BATCH = 32


def main() -> None:
    """Time, check and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_digits(folder / "digits")
        build_index(folder / "digits/index", folder / "index", encoder=TINY)
        photos = list(islice(cycle(sorted((folder / "digits/query").rglob("*.png"))), options.photos))
        steps = (Embed(TINY), Retrieve(folder / "index"), Vote(), OpenSet())
        batched, single = Pipeline(steps, BATCH), Pipeline(steps, 1)
        answers = [finished(batched, photos), finished(single, photos)]
        for one, other in zip(*answers, strict=True):
            assert required(one.verdicts)[0].label == required(other.verdicts)[0].label  # noqa: S101
            np.testing.assert_allclose(required(one.scores).values, required(other.scores).values, atol=1e-5)
        times = [[seconds(line, photos) for line in (batched, single)] for _ in range(options.rounds)]
    together, alone = (median(column) for column in zip(*times, strict=True))
    ratio = median(row[1] / row[0] for row in times)
    print(f"{options.photos} photos, same answers; medians of {options.rounds} rounds")
    print(
        f"batches of {BATCH}: {options.photos / together:.0f}/s, one by one: {options.photos / alone:.0f}/s"
    )
    print(f"ratio {ratio:.2f}  target 2")


def finished(line: Pipeline, photos: Sequence[Path]) -> list[Sample]:
    """Samples of all photos."""
    return [replace(s, timings={}) for s in line.run_files(photos) if isinstance(s, Sample)]


def seconds(line: Pipeline, photos: Sequence[Path]) -> float:
    """How long the photos take."""
    started = time.perf_counter()
    finished(line, photos)
    return time.perf_counter() - started


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main()
