"""run.json: what a labelling run was asked, of what, and by which index and encoders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from lmm_classifier.api.hybrid_classifier import HybridClassifier
from lmm_classifier.config.pipeline import PipelineConfig
from lmm_classifier.corpus.photos import Photos
from lmm_classifier.decision.gates import Gates
from lmm_classifier.errors import ConfigError, IndexFolderError, RunError
from lmm_classifier.index.manifest import read_manifest
from lmm_classifier.index.search import encoders_of
from lmm_classifier.labelling.run_schema import as_text
from lmm_classifier.models.loading import load_encoder
from lmm_classifier.monitoring.p_value_log import calibration_of, name_of
from lmm_classifier.steps.embed import Embed
from lmm_classifier.steps.retrieve import Retrieve
from lmm_classifier.storage.atomic_files import is_single_file, replace_file
from lmm_classifier.storage.checksummed_json import dump_checksummed, load_checksummed
from lmm_classifier.types import EncoderContract
from lmm_classifier.yaml_settings import explain

RUN = "run.json"
SCHEMA_VERSION = 1
REMEDY = "label the photos again, with --restart"
_DECIDING = ("lmm-classifier", "faiss-cpu", "numpy", "onnxruntime", "pillow", "torch", "transformers")
"""Packages whose version may move an answer."""
_NOT_DECIDING = frozenset({"service", "cache_dir"})
"""Settings that cannot change an answer; `service` is not stored."""
_MADE_OF = ("source", "index", "index_digest", "calibration", "encoders", "settings", "versions")
"""What must not differ between two attempts at a run."""


@dataclass(frozen=True, slots=True)
class RunManifest:
    """What a run says of itself.

    Attributes:
        source: the folder or table it was asked about, absolute.
        root: folder that relative paths of its photos start from.
        index: folder of the index that answered, absolute.
        index_digest: state of that index.
        calibration: digest of the calibrated scores in force; None without a calibration.
        odd_labels: labels of that index that are no UTF-8, as the run's tables have them -> as they are.
        encoders: what made the vectors, one space each.
        settings: of the classifier, all of them.
        versions: of what decides an answer: package -> version.
        started: ISO 8601, UTC.
        counts: once finished, how many photos there are of each kind; else None.
        seconds: once finished, that the last attempt took.
    """

    source: str
    root: str
    index: str
    index_digest: str
    calibration: str | None
    odd_labels: Mapping[str, Any]  # str; but pydantic takes none with lone surrogates
    encoders: tuple[EncoderContract, ...]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    started: str
    counts: Mapping[str, Any] | None = None
    seconds: float | None = None

    def label_of(self, text: str) -> str:
        """The label that a table of the run, or a reviewer, means by a text."""
        return str(self.odd_labels.get(text, text))


_FACTS: TypeAdapter[RunManifest] = TypeAdapter(RunManifest)


def read_run_manifest(folder: Path) -> RunManifest:
    """What run.json says.

    Raises:
        RunError: there is none, or it is damaged or of another version.
    """
    try:
        return _FACTS.validate_python(
            {
                k: v
                for k, v in load_checksummed(folder / RUN, SCHEMA_VERSION, REMEDY).items()
                if k != "schema_version"
            }
        )
    except FileNotFoundError as error:
        raise RunError(
            f"{folder} is no labelling run: it has no {RUN}; make one with `lmm-classifier label`"
        ) from error
    except IndexFolderError as error:
        raise RunError(str(error)) from error
    except ValidationError as error:
        raise RunError(f"{folder / RUN} does not describe a run; {REMEDY}") from error


def write_manifest(folder: Path, manifest: RunManifest) -> None:
    """Put run.json in the place of an older one.

    Raises:
        IndexFolderError: it cannot be written.
    """
    replace_file(folder / RUN, dump_checksummed({"schema_version": SCHEMA_VERSION, **asdict(manifest)}))


def manifest_of(source: Path, photos: Photos, classifier: HybridClassifier) -> RunManifest:
    """What a run by this classifier, which is open, is to say of itself.

    Raises:
        ConfigError: it has other than one `retrieve`, or its index is no folder.
    """
    retrieve = classifier.steps_of(Retrieve)
    if len(retrieve) != 1 or is_single_file(retrieve[0].index):
        raise ConfigError("a labelling run needs one `retrieve`, and an index that is a folder")
    index = retrieve[0].index
    of_index = read_manifest(index)
    embeds = [step for step in classifier.steps_of(Embed) if step.normalize]
    seen = {load_encoder(step.encoder).contract.fingerprint for step in embeds}
    settings = yaml.safe_load(classifier.config.to_yaml())
    return RunManifest(
        source=str(source.absolute()),
        root=str(photos.root.absolute()),
        index=str(index.absolute()),
        index_digest=of_index.digest,
        odd_labels={as_text(label): label for label in of_index.labels if as_text(label) != label},
        calibration=_calibration(classifier),
        encoders=tuple(encoder for encoder in encoders_of(index) if encoder.fingerprint in seen),
        settings={key: value for key, value in settings.items() if key != "service"},
        versions={name: version(name) for name in _DECIDING},
        started=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def classifier_of(manifest: RunManifest) -> HybridClassifier:
    """The classifier that a run was made by, with its index as it is now.

    Raises:
        RunError: this version does not understand its settings.
    """
    try:
        return HybridClassifier(PipelineConfig.model_validate(manifest.settings))
    except ValidationError as error:
        raise RunError(
            f"the run's settings are of another version: {explain(error, PipelineConfig)}"
        ) from error


def continued(folder: Path, manifest: RunManifest) -> RunManifest:
    """What the run that is there says of itself, which must be made of the same.

    Raises:
        RunError: it is not, or is damaged.
    """
    there = read_run_manifest(folder)
    differing = [name for name in _MADE_OF if _deciding(there, name) != _deciding(manifest, name)]
    if differing:
        names = dict.fromkeys(name.removesuffix("_digest") for name in differing)
        raise RunError(
            f"{folder} was made with other {' and '.join(names)}: give another --output, or --restart to "
            "begin it anew"
        )
    return there


def _deciding(manifest: RunManifest, name: str) -> Any:
    value = getattr(manifest, name)
    if name == "settings":
        return {key: option for key, option in value.items() if key not in _NOT_DECIDING}
    return value


def refuse_changed(manifest: RunManifest, folder: Path, classifier: HybridClassifier) -> None:
    """An index or a calibration that is replaced while a run goes on would answer the rest.

    Raises:
        RunError: it was.
    """
    same = read_manifest(Path(manifest.index)).digest == manifest.index_digest
    if not same or _calibration(classifier) != manifest.calibration:
        raise RunError(
            f"{manifest.index} was changed while {folder} was being made: begin it anew with --restart"
        )


def _calibration(classifier: HybridClassifier) -> str | None:
    return name_of(calibration_of(classifier)) if isinstance(classifier.thresholds, Gates) else None
