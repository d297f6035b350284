"""A small experiment over pictures made on the spot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from synthetic import write_corpus

BASE = {
    "encoder": {"family": "fake"},
    "retrieval": {"index_path": "none", "top_k": 10},
    "rerank": {"enabled": False},
}
ASKED: dict[str, Any] = {
    "about": "colours",
    "base": "base.yaml",
    "corpus": "corpus",
    "split": {"index": 0.6, "evaluate": 0.4},
    "hold_out_labels": 1,
    "seeds": [0, 1],
    "grid": {"calibrate.head": ["knn", "gda"], "calibrate.score": ["max_similarity", "mahalanobis"]},
    "resamples": 10,
}


def write_experiment(folder: Path, **changes: Any) -> Path:
    """base.yaml, corpus/ and experiment.yaml; a change to None leaves that key out."""
    if not (folder / "corpus").exists():
        write_corpus(folder / "corpus", per_label=30)
    (folder / "base.yaml").write_text(yaml.safe_dump(BASE), encoding="utf-8")
    asked = {key: value for key, value in {**ASKED, **changes}.items() if value is not None}
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(asked, sort_keys=False), encoding="utf-8")
    return path


def records(output: Path) -> dict[str, dict[str, Any]]:
    """Name -> run.json of every run that has one."""
    return {path.parent.name: json.loads(path.read_bytes()) for path in output.glob("*/run.json")}
