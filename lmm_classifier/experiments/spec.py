"""What an experiment asks for: settings, labelled photos, and a grid of changes, read from YAML."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.dataclasses import dataclass as checked_dataclass

from lmm_classifier.calibration.targets import CalibrationTarget
from lmm_classifier.config.pipeline import PipelineConfig
from lmm_classifier.errors import ConfigError
from lmm_classifier.yaml_settings import Settings, explain, naming, place_of, read_yaml

_RESAMPLES = 200  # of each run's intervals; what the seeds say is in `experiment compare`
_SLUG = 60  # characters of a folder's name that tell what is in it
_OWN_KEYS = ("retrieval.index_path", "retrieval.milvus_collection")  # each run has an index of its own
_Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32)]
_Part = Annotated[float, Field(strict=True, gt=0, lt=1)]
_PATHS = ("base", "corpus", "index", "held_out", "evaluate", "near", "far")


class SplitSettings(Settings):
    """`split:` shares of the corpus, by the digest of each photo and the seed; copies stay together.

    `held_out` photos fit the thresholds of the calibration. A `seed` here is that of every run's split; left
    out, a run's own seed is.
    """

    index: _Part
    held_out: _Part | None = None
    evaluate: _Part
    seed: _Seed | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if not math.isclose(sum(self.shares().values()), 1, abs_tol=1e-9):
            raise ValueError(f"the shares must sum to 1, they sum to {sum(self.shares().values()):g}")
        return self

    def shares(self) -> dict[str, float]:
        """Part -> share."""
        parts = {"index": self.index, "held_out": self.held_out, "evaluate": self.evaluate}
        return {name: share for name, share in parts.items() if share is not None}


@checked_dataclass(frozen=True, config={"extra": "forbid"})
class CalibrateSettings(CalibrationTarget):
    """`calibrate:` as the options of the command: a target, and the head and novelty score if not chosen."""

    head: str | None = None
    score: str | None = None


_CALIBRATE = TypeAdapter(CalibrateSettings)


class Experiment(Settings):
    """An experiment.

    Attributes:
        about: one line for whoever reads the results.
        needs: command that makes the data, named where they are missing.
        base: settings file that the runs start from.
        corpus, split: labelled photos, and how each run divides them; or
        index, held_out, evaluate: these parts as they are, `held_out` if wanted.
        near, far: photos of no label of the index.
        hold_out_labels: so many labels, drawn by the seed, are in no index; their photos are near unknowns.
        seeds: of the split, the labels held out, the calibration and the intervals; one run each.
        calibrate: target; False leaves the thresholds to the settings.
        grid: dotted key of the settings, or of `calibrate`, -> values; every combination is run.
        resamples: bootstrap resamples behind the intervals of each run.
    """

    about: str = ""
    needs: str | None = None
    base: Path
    corpus: Path | None = None
    split: SplitSettings | None = None
    index: Path | None = None
    held_out: Path | None = None
    evaluate: Path | None = None
    near: Path | None = None
    far: Path | None = None
    hold_out_labels: Annotated[int, Field(strict=True, ge=0)] = 0
    seeds: Annotated[tuple[_Seed, ...], Field(min_length=1)] = (0,)
    calibrate: CalibrateSettings | Literal[False] = CalibrateSettings()
    grid: Annotated[dict[str, Annotated[list[Any], Field(min_length=1)]], Field(min_length=1)]
    resamples: Annotated[int, Field(strict=True, ge=1, le=100_000)] = _RESAMPLES

    @field_validator("calibrate", mode="before")
    @classmethod
    def _target_or_false(cls, value: Any) -> Any:
        if value is False or isinstance(value, CalibrateSettings):
            return value
        if not isinstance(value, Mapping):
            raise ValueError("must be a mapping of target options, or false")
        return _CALIBRATE.validate_python(value)  # here, so that a misspelt key is not taken for `false`

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        parts = [name for name in ("index", "held_out", "evaluate") if getattr(self, name)]
        if bool(self.corpus) != bool(self.split) or bool(self.corpus) == bool(parts):
            raise ValueError("give either `corpus` and `split`, or `index` and `evaluate`")
        if parts and not (self.index and self.evaluate):
            raise ValueError("give both `index` and `evaluate`")
        for name, values in (("seeds", self.seeds), *self.grid.items()):
            texts = Counter(json.dumps(value, sort_keys=True, default=str) for value in values)
            if twice := [text for text, n in texts.items() if n > 1]:
                raise ValueError(f"{name}: {twice[0]} is given twice")
        for key in self.grid:
            if key.startswith(_OWN_KEYS):
                raise ValueError(f"grid: each run has its own {key}; vary `encoder`, or the data")
        return self

    @classmethod
    def from_yaml(cls, path: str | Path) -> Experiment:
        """Read and check a YAML file; relative paths in it start at its folder.

        Raises:
            ConfigError: unreadable, or wrong in any way; one line names the key and the remedy.
        """
        path = Path(path)
        with naming(path, cls):
            raw: Experiment = cls.model_validate(read_yaml(path))
        folder = path.absolute().parent
        found = {name: getattr(raw, name) for name in _PATHS if getattr(raw, name)}
        experiment: Experiment = raw.model_copy(
            update={name: folder / value.expanduser() for name, value in found.items()}
        )
        return experiment

    def to_yaml(self) -> str:
        """The experiment as YAML text."""
        body = self.model_dump(mode="json", exclude_unset=True)
        return yaml.safe_dump(body, sort_keys=False, allow_unicode=True)


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run before it is known on which photos.

    Attributes:
        cell: key of the grid -> value, in the grid's order.
        seed: of everything drawn.
        config: the settings, with the index path of the base.
        calibrate: the target; None for none.
    """

    cell: Mapping[str, Any]
    seed: int
    config: PipelineConfig
    calibrate: CalibrateSettings | None

    @property
    def slug(self) -> str:
        """The cell in a few characters that suit a file name."""
        words = "_".join(_words(key, value) for key, value in self.cell.items())
        return re.sub(r"[^A-Za-z0-9._]+", "-", words).strip("-.")[:_SLUG] or "run"


def plans(experiment: Experiment, folder: Path) -> list[PlannedRun]:
    """Every combination of the grid with every seed, checked before anything runs.

    Args:
        experiment: what is asked for.
        folder: what relative paths in the grid start from.

    Raises:
        ConfigError: a key or value that no run could have; the message names it.
    """
    base = PipelineConfig.from_yaml(experiment.base)
    made = []
    for cell in _cells(experiment.grid):
        of_target = {key: value for key, value in cell.items() if key.partition(".")[0] == "calibrate"}
        try:
            config = base.changed({k: v for k, v in cell.items() if k not in of_target}, folder)
            calibrate = _target(experiment.calibrate, of_target)
        except ConfigError as error:
            raise ConfigError(f"grid: {error}") from error
        made += [PlannedRun(cell, seed, config, calibrate) for seed in experiment.seeds]
    return made


def _cells(grid: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for values in product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _target(
    asked: CalibrateSettings | Literal[False], changes: Mapping[str, Any]
) -> CalibrateSettings | None:
    given = {key: value for key, value in asdict(asked).items() if value is not None} if asked else False
    body: dict[str, Any] = {"calibrate": given}
    for key, value in changes.items():
        place, last = place_of(body, key)
        place[last] = value
    if body["calibrate"] is False:
        return None
    try:
        return _CALIBRATE.validate_python(body["calibrate"])
    except ValidationError as error:
        raise ConfigError(f"calibrate.{explain(error, CalibrateSettings)}") from error


def _words(key: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return "-".join(_words(inner, part) for inner, part in value.items())
    if isinstance(value, str):
        return value.rpartition("/")[2]
    return f"{key.rpartition('.')[2]}-{json.dumps(value)}"
