"""`collections train | list | show | convert`: does a photo belong to a collection?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmm_classifier.cli.output import first_lines, help_without_command, note, progress
from lmm_classifier.text import printable

if TYPE_CHECKING:
    from lmm_classifier.collection.store import Snapshot
    from lmm_classifier.collection.train import Trained, TrainingReport

app = typer.Typer()

_StorePath = Annotated[Path, typer.Option("--store", "-s", help="Folder of the trained classifiers.")]
_AsJson = Annotated[bool, typer.Option("--json", help="One JSON object.")]
_STORE = Path("trained_classifiers")
_MIB = 2**20
_COLUMNS = (
    ("AP", "average_precision"),
    ("precision", "macro_precision"),
    ("F1", "f1"),
    ("right", "accuracy"),
)


@app.callback(invoke_without_command=True)
def group(context: typer.Context) -> None:
    """Train and look at collection classifiers; `run classify PHOTO -p store=FOLDER` asks them.

    Each says whether a photo belongs to its collection, and is bound to a region and to its own encoder.
    """
    help_without_command(context)


_Source = Annotated[
    str,
    typer.Argument(
        help="URL of a collections service, folder root/<collection>/**, .csv or .jsonl with path,label, "
        "or .npz with embeddings, labels and, if there are, ids."
    ),
]
_Encoders = Annotated[
    list[str],
    typer.Option(
        help="TYPE, TYPE=FAMILY or TYPE=FAMILY=WEIGHTS: what encodes photos (several are joined), or "
        "made the vectors called TYPE, to bind the classifiers to it."
    ),
]
_WherePairs = Annotated[
    list[str],
    typer.Option(
        "--where",
        "-w",
        help="Part of the photos, key=value: target (whole_image, prominent_person, prominent_face), "
        "on_missing (skip leaves a photo out, fallback takes the whole image); repeat.",
    ),
]
_EmbeddingType = Annotated[str | None, typer.Option(help="What the vectors of an .npz are called.")]
_Use = Annotated[
    list[str],
    typer.Option(help="COLLECTION=TYPE or TYPE+TYPE: embedding types instead of what the service declares."),
]
_Only = Annotated[list[str], typer.Option(help="Train this collection only; repeat.")]
_Estimators = Annotated[
    list[str],
    typer.Option(
        help="logistic-regression, linear-svc or lda, with options as linear-svc:C=3; repeat to let several "
        "compete."
    ),
]
_Metric = Annotated[
    str, typer.Option(help="macro_precision, average_precision, f1 or accuracy, on the held-out items.")
]
_Threshold = Annotated[
    float | None, typer.Option(min=0, max=1, help="Left out: the best by F1 in cross-validation.")
]
_Abstain = Annotated[
    float | None,
    typer.Option(
        min=0, max=0.5, help="Abstain when the probability is within this distance of the threshold."
    ),
]
_Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds for each answer of a service.")]
_MaxMib = Annotated[int, typer.Option(min=1, help="MiB of each answer of a service.")]
_JsonProgress = Annotated[
    bool, typer.Option("--json-progress", help="Progress as JSON lines on standard error.")
]


@app.command()
def train(
    source: _Source,
    store: _StorePath = _STORE,
    encoder: _Encoders = [],  # noqa: B006 -- typer copies it
    where: _WherePairs = [],  # noqa: B006
    embedding_type: _EmbeddingType = None,
    use: _Use = [],  # noqa: B006
    only: _Only = [],  # noqa: B006
    estimator: _Estimators = ["logistic-regression"],  # noqa: B006
    metric: _Metric = "macro_precision",
    threshold: _Threshold = None,
    abstain: _Abstain = None,
    timeout: _Timeout = 60.0,
    max_mib: _MaxMib = 256,
    as_json: _AsJson = False,
    json_progress: _JsonProgress = False,
) -> int:
    """Train a classifier per collection; the best of all kept versions on the held-out fifth is used.

    A service's token is read from the environment variable LMM_CLASSIFIER_COLLECTIONS_TOKEN.
    """
    from lmm_classifier.collection.encoder_binding import parse_encoders
    from lmm_classifier.collection.sources.source import SourceOptions, read_source
    from lmm_classifier.collection.train import train as trained
    from lmm_classifier.fetch import FetchLimits
    from lmm_classifier.regions import make_region_selector
    from lmm_classifier.yaml_settings import read_parameters

    options = SourceOptions(
        parse_encoders(encoder),
        embedding_type,
        {key: str(value) for key, value in read_parameters(use).items()},
        make_region_selector(read_parameters(where)),
        tuple(only),
        FetchLimits(total_s=timeout, silence_s=min(timeout, 10.0), max_bytes=max_mib * _MIB),
    )
    notes: list[str] = []
    with progress(json_progress) as on_progress:
        report = trained(
            read_source(source, options, notes),
            store,
            _options(estimator, metric, threshold, abstain),
            on_progress,
        )
    return _tell(report, notes, store, as_json)


@app.command("list")
def list_(
    store: _StorePath = _STORE,
    by_embedding_type: Annotated[
        bool, typer.Option("--by-embedding-type", help="Means of the figures per embedding type.")
    ] = False,
    as_json: _AsJson = False,
) -> int:
    """List the collections of a store with region, embedding type and figures on the held-out items."""
    from lmm_classifier.collection.store import Store

    opened = Store(store)
    if by_embedding_type:
        means = opened.by_embedding_type()
        if as_json:
            typer.echo(json.dumps(means))
            return 0
        for name, row in means.items():
            typer.echo(f"{printable(name)}: {row['collections']} collections{_figures(row)}")
        return 0
    snapshot = opened.snapshot()
    entries = {collection: _entry(snapshot, collection) for collection in snapshot.ids}
    if as_json:
        typer.echo(json.dumps(entries))
    else:
        for collection, entry in entries.items():
            typer.echo(_line(collection, entry))
    return 2 if any("problem" in entry for entry in entries.values()) else 0


@app.command()
def show(
    collection: Annotated[str, typer.Argument(help="Id of the collection.")],
    store: _StorePath = _STORE,
    as_json: _AsJson = False,
) -> int:
    """Show everything that is stored of a collection, and the versions that competed."""
    from lmm_classifier.collection.store import Store

    opened = Store(store)
    body = _entry(opened.snapshot(), collection, raise_unknown=True)
    comparison = opened.comparison(collection)
    if as_json:
        typer.echo(json.dumps({**body, "comparison": comparison}))
        return 2 if "problem" in body else 0
    for key, value in body.items():
        typer.echo(printable(f"{key}: {value if isinstance(value, str) else json.dumps(value)}"))
    for row in (comparison or {}).get("versions", ()):
        why = f", {row['reason']}" if row["reason"] else _figures(row["metrics"] or {})
        typer.echo(printable(f"    {row['version']}: {row['estimator']}{why}"))
    return 2 if "problem" in body else 0


@app.command()
def convert(
    store: _StorePath = _STORE,
    trusted: Annotated[
        bool,
        typer.Option(
            "--i-trust-these-files",
            help="Required: opening a pickle can run any code that is in it; open only your own.",
        ),
    ] = False,
    as_json: _AsJson = False,
) -> int:
    """Turn the old `.pkl` classifiers that best_models.json names into files that hold no code.

    Each is opened in a process of its own, which makes nothing but logistic regressions.
    """
    from lmm_classifier.collection.convert import convert_pickles
    from lmm_classifier.errors import ConfigError

    if not trusted:
        raise ConfigError(
            "a pickle can run any code when it is opened; add --i-trust-these-files if you made these files"
        )
    converted, failed = convert_pickles(store)
    if as_json:
        typer.echo(json.dumps({"converted": converted, "failed": failed}))
    else:
        for collection, model_file in converted.items():
            typer.echo(printable(f"collection {collection}: {model_file}"))
    first_lines("failed: {}", [f"collection {key}: {reason}" for key, reason in failed.items()])
    if failed and not converted:
        return 1
    return 2 if failed else 0


def _options(names: list[str], metric: str, threshold: float | None, abstain: float | None) -> Any:
    from lmm_classifier.collection.estimators import parse_estimator
    from lmm_classifier.collection.selection import METRICS
    from lmm_classifier.collection.train import TrainOptions
    from lmm_classifier.errors import ConfigError
    from lmm_classifier.registry import did_you_mean

    if metric not in METRICS:
        raise ConfigError(f"unknown metric {metric!r}{did_you_mean(metric, METRICS)}")
    estimators = tuple(parse_estimator(name) for name in names)
    return TrainOptions(estimators, metric, threshold, abstain)


def _tell(report: TrainingReport, notes: list[str], store: Path, as_json: bool) -> int:
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "trained": [{**t.best.sealed(), "warnings": t.warnings} for t in report.trained],
                    "skipped": [
                        {"collection": s.collection, "name": s.name, "reason": s.reason}
                        for s in report.skipped
                    ],
                    "left_out": notes,
                }
            )
        )
    else:
        for result in report.trained:
            typer.echo(_trained_line(result))
        typer.echo(
            printable(f"{store}: {len(report.trained)} collections trained, {len(report.skipped)} skipped")
        )
    warnings = [f"collection {t.best.collection}: {text}" for t in report.trained for text in t.warnings]
    first_lines("warning: {}", warnings)
    first_lines("left out: {}", notes)
    for skipped in report.skipped:  # all of them: each is a classifier that is not there
        note(f"skipped: collection {skipped.collection} ({skipped.name}): {skipped.reason}")
    if not report.trained:
        return 1
    return 2 if report.skipped or notes else 0


def _trained_line(result: Trained) -> str:
    best = result.best
    newest = max(c.version.created for c in result.ranking if c.version)
    kind = f"{best.embedding_type} of {best.derivative_type}"
    older = "" if best.created == newest else ", an older version"
    figures = _figures(asdict(best.metrics) if best.metrics else {})
    return printable(f"collection {best.collection} ({best.name}): {kind}{figures}{older}")


def _entry(snapshot: Snapshot, collection: str, raise_unknown: bool = False) -> dict[str, Any]:
    """What is stored of a collection, with `problem` where it cannot be used."""
    from lmm_classifier.errors import ClassifierFileError, UnknownCollectionError

    body: dict[str, Any] = {}
    try:
        body = snapshot.metadata(collection)
        snapshot.version(collection)
    except UnknownCollectionError:
        if raise_unknown:
            raise
    except ClassifierFileError as error:
        body["problem"] = str(error)
    return {key: value for key, value in body.items() if key != "digest"}


def _line(collection: str, entry: Mapping[str, Any]) -> str:
    kind = f"{entry.get('embedding_type', '?')} of {entry.get('derivative_type', '?')}"
    if "problem" in entry:
        return printable(f"{collection}: {kind}; not usable: {entry['problem']}")
    return printable(f"{collection} ({entry['name']}): {kind}{_figures(entry.get('metrics') or {})}")


def _figures(metrics: Mapping[str, Any]) -> str:
    known = [f"{title} {metrics[key]:.3f}" for title, key in _COLUMNS if metrics.get(key) is not None]
    return "".join(f", {text}" for text in known)
