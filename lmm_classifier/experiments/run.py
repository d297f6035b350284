"""Running an experiment: a folder per run, indexes and query vectors shared among them.

    OUTPUT/
      experiment.yaml    as it was read
      experiment.json    its runs, written first
      shared/            an index per encoder and set of photos, and the tables of these photos
      <run>/             config.yaml, index/ (hard links to a shared one, and its own calibration),
                         evaluation.json, report.html, and run.json, written last

A run is done when its run.json is there: its folder is named after the digest of everything that was asked
for, so a killed experiment goes on where it was, and a changed one runs what is new.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from lmm_classifier.api.hybrid_classifier import HybridClassifier
from lmm_classifier.calibration.calibrate import calibrate
from lmm_classifier.config.pipeline import PipelineConfig
from lmm_classifier.corpus.corpus import SkippedFile
from lmm_classifier.errors import ConfigError, LmmClassifierError
from lmm_classifier.evaluation.embedding_cache import EmbeddingCache
from lmm_classifier.evaluation.evaluate import evaluate
from lmm_classifier.evaluation.page import write_evaluation
from lmm_classifier.evaluation.results import Evaluation
from lmm_classifier.experiments.figures import figures_of, milliseconds
from lmm_classifier.experiments.shared_indexes import SharedIndexes, index_key, link_files
from lmm_classifier.experiments.spec import Experiment, PlannedRun, plans
from lmm_classifier.experiments.splits import Splits, SplitSources
from lmm_classifier.index.calibration import read_calibration
from lmm_classifier.storage.atomic_files import explained, replace_file
from lmm_classifier.storage.checksummed_json import digest_of
from lmm_classifier.storage.exclusive_folder import exclusive_folder
from lmm_classifier.storage.progress import OnProgress, Progress, ignore_progress
from lmm_classifier.text import one_line

SCHEMA_VERSION = 1
RUN, RUNS, _ASKED, _SHARED = "run.json", "experiment.json", "experiment.yaml", "shared"
_INDEX = Path("index")  # of a run, as its config.yaml names it


@dataclass(frozen=True, slots=True)
class ExperimentRun:
    """A plan and the photos it is for. `frozen` is everything asked for, and `name` ends in its digest."""

    plan: PlannedRun
    parts: Splits
    frozen: Mapping[str, Any]
    digest: str
    name: str

    @property
    def index_key(self) -> str:
        """Equal for runs that share an index."""
        return index_key(self.parts.index, self.plan.config.encoder)

    def entry(self) -> dict[str, Any]:
        """What identifies the run."""
        return {
            "name": self.name,
            "cell": dict(self.plan.cell),
            "seed": self.plan.seed,
            "digest": self.digest,
        }


@dataclass(slots=True)
class Outcome:
    """What came of an experiment.

    Attributes:
        done: runs finished now.
        before: runs that were finished already.
        failed: name of the run -> why, in one line.
        degraded: name of the run -> answers for which the reranker could not be asked.
        skipped: photos that were not indexed, held out or evaluated, each once.
    """

    done: int = 0
    before: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    degraded: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, SkippedFile] = field(default_factory=dict)

    def skip(self, files: Sequence[SkippedFile]) -> None:
        """Note photos, by their path."""
        self.skipped |= {file.path: file for file in files}


def run_experiment(
    experiment: Experiment, folder: Path, output: Path, on_progress: OnProgress = ignore_progress
) -> Outcome:
    """Run what is not finished yet; a run that fails is recorded with its reason.

    Args:
        experiment: what is asked for.
        folder: what relative paths in its grid start from.
        output: a folder, made if missing; or that of an earlier attempt.
        on_progress: told where it stands.

    Raises:
        ConfigError: a run that could never be, or an output that is something else or in use.
        CorpusError: a source of photos is missing or wrong.
    """
    planned = plans(experiment, folder)
    with exclusive_folder(output, RUNS, "an experiment"):
        runs = _runs(experiment, planned, SplitSources(experiment, on_progress))
        _announce(experiment, runs, output)
        outcome, indexes, answering = Outcome(), SharedIndexes(output / _SHARED), EmbeddingCache()
        for number, run in enumerate(sorted(runs, key=lambda run: run.index_key), start=1):
            if _finished(output / run.name, run.digest):
                outcome.before += 1
                continue
            staged = _staged(on_progress, f"run {number} of {len(runs)}")
            try:
                _carry_out(run, experiment, output, indexes, answering, outcome, staged)
                outcome.done += 1
            except LmmClassifierError as error:
                outcome.failed[run.name] = one_line(str(error))
                body = {"status": "failed", "error": outcome.failed[run.name], **run.entry()}
                _write_json(output / run.name / RUN, {"schema_version": SCHEMA_VERSION, **body})
    return outcome


def _runs(
    experiment: Experiment, planned: Sequence[PlannedRun], sources: SplitSources
) -> list[ExperimentRun]:
    parts = {seed: sources.parts(seed) for seed in experiment.seeds}
    digests = {
        seed: {name: photos.digest() for name, photos in found.named().items()}
        for seed, found in parts.items()
    }
    runs = []
    for plan in planned:
        frozen = {
            "settings": yaml.safe_load(_at(plan.config, _INDEX).to_yaml()),
            "calibrate": asdict(plan.calibrate) if plan.calibrate else False,
            "seed": plan.seed,
            "resamples": experiment.resamples,
            "held_out_labels": list(parts[plan.seed].held_out_labels),
            "photos": digests[plan.seed],
        }
        digest = digest_of(frozen)
        name = f"{plan.slug}.seed{plan.seed}.{digest[:8]}"
        runs.append(ExperimentRun(plan, parts[plan.seed], frozen, digest, name))
    return runs


def _announce(experiment: Experiment, runs: Sequence[ExperimentRun], output: Path) -> None:
    replace_file(output / _ASKED, experiment.to_yaml().encode())
    body = {
        "schema_version": SCHEMA_VERSION,
        "about": experiment.about,
        "keys": list(experiment.grid),
        "runs": [run.entry() for run in runs],
    }
    _write_json(output / RUNS, body)


def _finished(folder: Path, digest: str) -> bool:
    """Whether this very run is done; one that failed is tried again."""
    try:
        body = json.loads((folder / RUN).read_bytes())
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / RUN} cannot be read ({error}); delete {folder}") from error
    return isinstance(body, dict) and body.get("status") == "done" and body.get("digest") == digest


def _staged(on_progress: OnProgress, run: str) -> OnProgress:
    return lambda state: on_progress(replace(state, stage=f"{run}: {state.stage}"))


def _carry_out(
    run: ExperimentRun,
    experiment: Experiment,
    output: Path,
    indexes: SharedIndexes,
    answering: EmbeddingCache,
    outcome: Outcome,
    on_progress: OnProgress,
) -> None:
    folder = output / run.name
    with explained(folder):
        if folder.exists():  # of an attempt that was killed, or failed
            shutil.rmtree(folder)
    index, skipped = indexes.index_of(run.parts.index, run.plan.config, on_progress)
    outcome.skip(skipped)
    link_files(index, folder / _INDEX)
    classifier = HybridClassifier(_at(run.plan.config, folder / _INDEX))
    replace_file(folder / "config.yaml", _at(run.plan.config, _INDEX).to_yaml().encode())
    if run.plan.calibrate:
        on_progress(Progress("calibrating"))
        held_out = run.parts.held_out.corpus() if run.parts.held_out else None
        asked = run.plan.calibrate
        _, skipped = calibrate(
            classifier, asked, held_out=held_out, head=asked.head, score=asked.score,
            seed=run.plan.seed,
        )  # fmt: skip
        outcome.skip(skipped)
    for step in classifier.pipeline.steps:  # the reranker too: no run is to pay for opening it, or do without
        step.load()
    found = evaluate(
        classifier,
        run.parts.evaluate.corpus(),
        near=run.parts.near.corpus() if run.parts.near else None,
        far=run.parts.far.corpus() if run.parts.far else None,
        resamples=experiment.resamples,
        seed=run.plan.seed,
        answering=answering,
        on_progress=on_progress,
    )
    outcome.skip(found.skipped)
    degraded = sum(query.answer.degraded is not None for query in found.queries)
    if degraded:
        outcome.degraded[run.name] = degraded
    on_progress(Progress("writing the page"))
    _write_json(folder / "evaluation.json", found.to_dict())
    write_evaluation(folder / "report.html", f"Run {run.name}", found, run.parts.index.root)
    _write_json(folder / RUN, _record(run, found, folder / _INDEX, degraded))


def _record(run: ExperimentRun, found: Evaluation, index: Path, degraded: int) -> dict[str, Any]:
    fitted = read_calibration(index) if run.plan.calibrate else None
    made = fitted.calibration if fitted else None
    return {
        "schema_version": SCHEMA_VERSION,
        "status": "done",
        **run.entry(),
        "frozen": dict(run.frozen),
        "photos": {
            name: {"root": str(photos.root), "photos": len(photos.photos), "digest": photos.digest()}
            for name, photos in run.parts.named().items()
        },
        "index": found.subject["indexes"][0],
        "calibration": made and {"target": made.target, "arrays": asdict(made.arrays)},
        "figures": figures_of(found),
        "milliseconds_per_photo": milliseconds(found),
        "skipped": len(found.skipped),
        "degraded": degraded,
        "versions": found.conditions["versions"],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _at(config: PipelineConfig, index: Path) -> PipelineConfig:
    """The settings over another index."""
    if config.retrieval is None:
        raise AssertionError("settings changed by key are in the short form")
    retrieval = config.retrieval.model_copy(update={"index_path": index})
    moved: PipelineConfig = config.model_copy(update={"retrieval": retrieval})
    return moved


def _write_json(path: Path, body: Mapping[str, Any]) -> None:
    replace_file(path, json.dumps(body, indent=2, allow_nan=False).encode() + b"\n")
