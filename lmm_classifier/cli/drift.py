"""`evaluate --drift FILE`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lmm_classifier.cli.output import note

if TYPE_CHECKING:
    from lmm_classifier.monitoring.drift import Drift


def report(log: Path, config: Path, window: int, as_json: bool) -> int:
    """Say whether logged photos still look as those calibrated on; 2 when they do not."""
    from lmm_classifier.api.hybrid_classifier import HybridClassifier
    from lmm_classifier.monitoring.drift import drift
    from lmm_classifier.monitoring.p_value_log import calibration_of, name_of, read_log

    fitted = calibration_of(HybridClassifier.from_yaml(config))
    logged = read_log(log, name_of(fitted))
    gates = fitted.calibration.gates
    found = drift(logged.p_values, fitted.decider.calibrated, gates.keep_known, window)
    if logged.others:
        note(f"{logged.others} lines of other calibrations are left out")
    if logged.cut_off:
        lines = ", ".join(map(str, logged.cut_off[:3])) + (", ..." if len(logged.cut_off) > 3 else "")
        note(f"left out what a crash cut off: {len(logged.cut_off)} lines, {lines}")
    if as_json:
        body = {"lines_of_others": logged.others, "lines_cut_off": list(logged.cut_off)}
        typer.echo(json.dumps({**found.to_dict(), **body}))
    else:
        _show(found)
    return 2 if found.recalibrate else 0


def _show(found: Drift) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("p-values of", "photos", "gap", "chance of such a gap", "too many")
    for name, tested in (("all", found.whole), ("the latest", found.latest)):
        too_many = f"{tested.direction} ones" if tested.alarm else "-"
        chance = f"{tested.p_value:.3f}" if tested.p_value >= 0.0005 else "below 0.0005"
        table.add_row(name, f"{tested.photos}", f"{tested.statistic:.3f}", chance, too_many)
    Console().print(table)
    typer.echo(
        f"below the cut: {found.rejected:.1%} ({found.low:.1%}-{found.high:.1%}); of known photos "
        f"{found.asked:.1%} are to be; calibrated on {found.calibrated}"
    )
    typer.echo(found.advice)
