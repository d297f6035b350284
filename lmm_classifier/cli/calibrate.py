"""`calibrate`: fit when an answer is sure, uncertain or unknown."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lmm_classifier.cli.output import first_lines, note
from lmm_classifier.errors import ConfigError
from lmm_classifier.text import printable

if TYPE_CHECKING:
    from lmm_classifier.calibration.targets import Costs
    from lmm_classifier.index.calibration import Calibration, RerankTrial

_Settings = Annotated[Path, typer.Option("--config", "-c", help="Settings, such as config/default.yaml.")]
_KeepKnown = Annotated[float, typer.Option(help="Share of known photos that must not be called unknown.")]
_Keep = Annotated[
    list[str] | None,
    typer.Option(metavar="LABEL=SHARE", help="Like --keep-known, for one label; may be repeated."),
]
_PerLabel = Annotated[
    bool, typer.Option("--per-label", help="A threshold of its own for each label with photos enough.")
]
_CostsText = Annotated[
    str | None,
    typer.Option(
        metavar="REJECTED:ACCEPTED:SHARE",
        help="Instead of --keep-known: cost of a known photo rejected, of an unknown one accepted, and "
        "the share of unknown photos to come, such as 1:5:0.1.",
    ),
]
_Coverage = Annotated[
    float, typer.Option(help="Share of known photos whose true label must remain possible.")
]
_CatchUnknown = Annotated[
    float,
    typer.Option(help="Share of unknown photos that must not be accepted at once, without rerank or review."),
]
_SecondLook = Annotated[
    float,
    typer.Option(
        help="Upper limit on the share of known photos sent to rerank or review because of --catch-unknown."
    ),
]
_AlwaysLook = Annotated[
    float,
    typer.Option(help="Share of known photos, the least known first, that always go to rerank or review."),
]
_Head = Annotated[
    str | None, typer.Option(help="knn, prototype, gda or fusion; left out: the best on this index.")
]
_Score = Annotated[
    str | None, typer.Option(help="Novelty score, or `combination`; left out: the best on this index.")
]
_HeldOutPhotos = Annotated[
    Path | None,
    typer.Option(help="Labelled photos that are not in the index, to fit the thresholds on."),
]
_IndexedPhotos = Annotated[
    Path | None,
    typer.Option(
        help="The folder that the index was built from: try the reranker on its photos, and ask it only "
        "where it helps."
    ),
]
_Seed = Annotated[int, typer.Option(min=0, help="Seed of the leave-out simulation.")]
_AsJson = Annotated[bool, typer.Option("--json", help="Print the calibration as one JSON object.")]


def run(
    config: _Settings,
    keep_known: _KeepKnown = 0.95,
    keep: _Keep = None,
    per_label: _PerLabel = False,
    costs: _CostsText = None,
    coverage: _Coverage = 0.99,
    catch_unknown: _CatchUnknown = 0.9,
    second_look: _SecondLook = 0.25,
    always_look: _AlwaysLook = 0.0,
    head: _Head = None,
    score: _Score = None,
    held_out: _HeldOutPhotos = None,
    photos: _IndexedPhotos = None,
    seed: _Seed = 0,
    as_json: _AsJson = False,
) -> int:
    """Fit head, novelty score and thresholds for an index, and store them in it.

    Needs no photo of anything unknown: labels of the index are held out in turn.
    """
    from lmm_classifier.api.hybrid_classifier import HybridClassifier
    from lmm_classifier.calibration.calibrate import calibrate
    from lmm_classifier.calibration.targets import CalibrationTarget
    from lmm_classifier.corpus.source import read_corpus
    from lmm_classifier.steps.open_set import OpenSet

    target = CalibrationTarget(
        keep_known=keep_known,
        per_label=dict(_share_of_label(text) for text in keep or ()),
        every_label=per_label,
        costs=_costs(costs) if costs else None,
        coverage=coverage,
        catch_unknown=catch_unknown,
        second_look=second_look,
        always_look=always_look,
    )
    classifier = HybridClassifier.from_yaml(config)
    calibration, skipped = calibrate(
        classifier,
        target,
        held_out=read_corpus(held_out) if held_out else None,
        head=head,
        score=score,
        photos=photos,
        seed=seed,
    )
    if as_json:
        typer.echo(json.dumps(asdict(calibration)))
    else:
        _print(calibration)
    if any(step.configured for step in classifier.steps_of(OpenSet)):
        note("the settings set a threshold, so they do not use this calibration: take the threshold out")
    first_lines("skipped {}", [f"{item.path}: {item.reason} [{item.code}]" for item in skipped])
    return 2 if skipped else 0


def _share_of_label(text: str) -> tuple[str, float]:
    label, found, share = text.rpartition("=")
    try:
        if not (found and label):
            raise ValueError
        return label, float(share)
    except ValueError as error:
        raise ConfigError(f"--keep {text!r}: write LABEL=SHARE, such as rose=0.99") from error


def _costs(text: str) -> Costs:
    from lmm_classifier.calibration.targets import Costs

    try:
        return Costs(*(float(part) for part in text.split(":")))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"--costs {text!r}: write REJECTED:ACCEPTED:SHARE, such as 1:5:0.1") from error


def _print(calibration: Calibration) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    heads = Table("head", "accuracy", "macro", "log loss", title="labels, each photo without itself")
    for name, result in calibration.heads.items():
        heads.add_row(name, *(f"{result[key]:.3f}" for key in ("accuracy", "macro_accuracy", "log_loss")))
    console.print(heads)
    scores = Table("novelty score", "AUROC", title="known or unknown, each label without itself")
    for name, auroc in sorted(calibration.auroc.items(), key=lambda item: -item[1]):
        scores.add_row(name, f"{auroc:.3f}")
    console.print(scores)
    routes = Table("expected route", "known photos", "unknown photos")
    for name in ("accept", "rerank", "review", "unknown"):
        shares = (calibration.expected, calibration.expected_unknown)
        routes.add_row(name, *(f"{share.get(name, 0.0):.1%}" if share else "-" for share in shares))
    console.print(routes)
    used = ", ".join(f"{name} {weight:.2f}" for name, weight in calibration.head.weights.items())
    typer.echo(
        f"head: {used}; {calibration.head.k} neighbours at temperature {calibration.head.temperature:g}"
    )
    typer.echo(f"novelty: {', '.join(calibration.novelty.names)}")
    images = calibration.n_held_out or calibration.n_images
    typer.echo(f"{printable(calibration.target)}; fitted on {images} photos")
    if calibration.rerank:
        _show_trial(calibration.rerank)
    typer.echo(f"gates: {calibration.gates.describe()}")


def _show_trial(trial: RerankTrial) -> None:
    verdict = "asked where it is uncertain" if trial.helps else "does not help here: not asked"
    typer.echo(
        f"reranker: {verdict}; of {trial.cases} uncertain photos {trial.corrections} corrected, "
        f"{trial.regressions} made worse"
    )
    if trial.not_for:
        typer.echo(f"reranker: not asked about {printable(', '.join(trial.not_for))}")
    if trial.helps and trial.ask_below < 1:
        typer.echo(f"reranker: not asked where retrieval is surer than {trial.ask_below:.3f} of its answer")
    if trial.flip_rate is not None:
        typer.echo(f"reranker: reversing its list changes {trial.flip_rate:.1%} of its answers")
    if trial.curve:
        points = ", ".join(f"{share:.0%}: {right:.1%}" for share, right in trial.curve[::4])
        typer.echo(f"reranker: right by share of the uncertain asked, most doubtful first: {points}")
