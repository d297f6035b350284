"""`label simulate`: what a review of a folder would bring, in the queue's order and at random."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmm_classifier.api.hybrid_classifier import HybridClassifier
from lmm_classifier.calibration.context import context_of
from lmm_classifier.corpus.source import read_corpus
from lmm_classifier.errors import ConfigError, CorpusError
from lmm_classifier.labelling.run_context import context_of_run, learner_of, vectors_of
from lmm_classifier.labelling.run_schema import path_of
from lmm_classifier.labelling.run_store import LabellingRun
from lmm_classifier.labelling.simulation.replay import Review, looks_needed, simulate
from lmm_classifier.metrics.weighted import Curve
from lmm_classifier.reports import plots
from lmm_classifier.reports.html import write_page
from lmm_classifier.storage.atomic_files import replace_file
from lmm_classifier.types import UNKNOWN

_SIMULATION, _PAGE = "simulation.json", "simulation.html"
_NEEDED = (
    "a simulation needs a calibrated index, without a closed list of labels or a text prior: run "
    "`lmm-classifier calibrate`"
)


@dataclass(frozen=True, slots=True, eq=False)
class Simulation:
    """Reviews of one folder.

    Attributes:
        queue: in the queue's order.
        random: in random orders.
        photos: of the folder that could be read and have a label.
        labels: of these photos.
        new_labels: those of them that the index lacks.
    """

    queue: Review
    random: tuple[Review, ...]
    photos: int
    labels: tuple[str, ...]
    new_labels: tuple[str, ...]

    @property
    def reached(self) -> float:
        """Accuracy in the queue's order at its end."""
        return float(self.queue.accuracy[-1])

    @property
    def looks(self) -> float | None:
        """Looks that the queue's order needs for what random orders reach at their end, on average."""
        return looks_needed([self.queue], float(np.mean([review.accuracy[-1] for review in self.random])))

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types."""
        return {
            "photos": self.photos,
            "labels": list(self.labels),
            "new_labels": list(self.new_labels),
            "queue": _as_json(self.queue),
            "random": [_as_json(review) for review in self.random],
            "looks_of_the_queue_for_what_random_reaches": self.looks,
        }


def simulate_review(
    run: LabellingRun, source: Path, *, looks: int, orders: int, seed: int = 0, tell: Callable[[int], None]
) -> Simulation:
    """Replay a run over photos whose labels are known.

    Args:
        run: over the photos of `source`.
        source: labelled folder or table.
        looks: photos looked at in each review.
        orders: random orders.
        seed: of the first of these.
        tell: called with the number of reviews done.

    Raises:
        ConfigError: the index is not calibrated, or its answers depend on more than photos.
        CorpusError: no photo of the run has a label.
        RunError: the run is damaged.
    """
    truth_of = {item.path: item.label for item in read_corpus(source).items}
    columns = run.columns("path", "path_bytes").to_pylist()
    truths = [truth_of.get(path_of(columns[row])) for row in run.readable().tolist()]
    rows = np.asarray([i for i, truth in enumerate(truths) if truth not in {None, UNKNOWN}], np.int64)
    if not rows.size:
        raise CorpusError(f"no photo of {run.folder} has a label in {source}")
    learner = learner_of(context_of_run(run))
    if learner is None:
        raise ConfigError(_NEEDED)
    vectors = [found[rows] for found in vectors_of(run)]
    labels = [str(truths[row]) for row in rows.tolist()]
    looks = min(looks, len(rows))
    queue = simulate(learner, vectors, labels, by="queue", looks=looks)
    tell(1)
    random = []
    for i in range(orders):
        random.append(simulate(learner, vectors, labels, by="random", looks=looks, seed=seed + i))
        tell(2 + i)
    names = tuple(sorted(set(labels)))
    return Simulation(queue, tuple(random), len(rows), names, tuple(sorted(set(names) - set(learner.labels))))


def check_source(source: Path, classifier: HybridClassifier) -> None:
    """See that a simulation is possible before any photo is looked at.

    Raises:
        CorpusError: no photo has a label.
        ConfigError, IndexFolderError: the index is not calibrated, or cannot be used.
    """
    read_corpus(source)
    if learner_of(context_of(classifier)) is None:
        raise ConfigError(_NEEDED)


def write_simulation(run: LabellingRun, found: Simulation) -> tuple[Path, Path]:
    """Write figures and page into the folder of the run; returns both.

    Raises:
        IndexFolderError: they cannot be written.
    """
    body = json.dumps(found.to_dict(), indent=2, allow_nan=False)
    replace_file(run.folder / _SIMULATION, body.encode() + b"\n")
    write_page(
        run.folder / _PAGE,
        "simulation.html.jinja",
        package="lmm_classifier.labelling.simulation",
        title=f"Simulated review of {run.folder.name}",
        figures=_figures(found),
        plots=(_plot(found),),
    )
    return run.folder / _SIMULATION, run.folder / _PAGE


def _figures(found: Simulation) -> dict[str, str]:
    at_random = np.mean([review.accuracy[-1] for review in found.random])
    end = int(found.queue.looked_at[-1])
    figures = {
        "photos": str(found.photos),
        "labels that the index lacks": ", ".join(found.new_labels) or "none",
        "accuracy before": f"{found.queue.accuracy[0]:.1%}",
        f"accuracy after {end} looks, queue": f"{found.reached:.1%}",
        f"accuracy after {end} looks, random order": f"{at_random:.1%} (mean of {len(found.random)})",
        "labels in the index then, queue": f"{found.queue.labels[-1]}",
        "of photos that nobody looked at and no group labelled, queue": (
            f"{found.queue.accuracy_untouched[-1]:.1%} of {found.queue.untouched[-1]}"
        ),
        "photos that a group gave a wrong label": str(found.queue.given_wrong),
    }
    if found.looks is not None:
        figures[f"looks in the queue's order for what {end} at random reach"] = f"{found.looks:.0f}"
    return figures


def _plot(found: Simulation) -> plots.Plot:
    end = int(found.queue.looked_at[-1])
    grid = np.arange(end + 1, dtype=np.float64)
    mean = np.mean([np.interp(grid, r.looked_at, r.accuracy) for r in found.random], axis=0)
    return plots.progress(
        "Accuracy against photos looked at",
        "Share of all photos whose label is right: the one given in the review, else the one answered by the "
        "index as it has learned by then. A group costs as many looks as it shows photos.",
        "photos looked at",
        "accuracy over all photos",
        {
            "the queue's order": Curve(found.queue.looked_at.astype(np.float64), found.queue.accuracy),
            f"random order, mean of {len(found.random)}": Curve(grid, mean),
        },
    )


def _as_json(review: Review) -> dict[str, Any]:
    untouched = [None if np.isnan(share) else share for share in review.accuracy_untouched.tolist()]
    return {
        "looked_at": review.looked_at.tolist(),
        "accuracy": review.accuracy.tolist(),
        "accuracy_untouched": untouched,
        "untouched": review.untouched.tolist(),
        "unknown": review.unknown.tolist(),
        "labels": review.labels.tolist(),
        "given_wrong": review.given_wrong,
    }
