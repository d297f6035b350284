"""One trained classifier on disk: a file of numbers, and a sealed JSON file that says what they are for.

    collection_7_classifier_2026-11-21_140500.safetensors   coefficients of a linear classifier
    collection_7_classifier_2026-11-21_140500.json          everything else; written last

Nothing here can hold code: a pickle under any name is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import safetensors.numpy
from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError

from lmm_classifier.collection.estimators import Linear
from lmm_classifier.collection.training_set import JOIN, EmbeddingPart
from lmm_classifier.errors import ClassifierFileError, CollectionError, IndexFolderError
from lmm_classifier.regions import TargetName
from lmm_classifier.storage.atomic_files import replace_file
from lmm_classifier.storage.checksummed_json import digest_of, load_checksummed

SCHEMA_VERSION: Literal[2] = 2  # the documented `best_models.json` is version 2 of its map; this one says so
LINEAR = ".safetensors"
FORMER = ".skops"  # what version 0.1 kept other classifiers in
PICKLES = (".pkl", ".pickle", ".joblib")
_NAME = re.compile(r"collection_[a-z0-9][a-z0-9-]{0,99}_classifier_[0-9_-]{17,24}\.(safetensors|skops)")
_PLAIN_ID = re.compile(r"(?=.{1,64}$)[a-z0-9]+(-[a-z0-9]+)*")
_MAX_MODEL_BYTES = 1 << 30
_Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, slots=True)
class ClassifierMetrics:
    """How a classifier does on the held-out items.

    Attributes:
        macro_precision: mean of the precisions of yes and no; 0 for an answer that is never given.
        average_precision: of the probabilities; None where the held-out items are all of one class.
        f1: of yes.
        accuracy, recall: share of right answers; share of the collection that is found.
        calibration_error: mean distance of probability and share of yes over ten equal bins.
        n, positive: held-out items, and how many belong to the collection.
    """

    macro_precision: _Probability
    average_precision: _Probability | None
    f1: _Probability
    accuracy: _Probability
    recall: _Probability
    calibration_error: _Probability
    n: _Count
    positive: _Count


@dataclass(frozen=True, slots=True)
class ClassifierArtifact:
    """A trained classifier and everything it is bound to.

    Attributes:
        collection, name: whose it is.
        model_file: its coefficients, a bare file name in the store.
        derivative_type: the part of a photo it looks at.
        embedding_type: the names of the parts of its vectors, joined by "+".
        dimensionality: d, of all parts together.
        parts: each with the fingerprint of its encoder.
        estimator: what was fitted.
        slope, offset: probability = sigmoid(slope x score + offset).
        calibration: "platt" by cross-validation on the training items; "none": the score is a log-odds.
        threshold: probability from which a photo belongs.
        abstain: probabilities (low, high) between which it does not say; None: it always does.
        training: number of items, "positive" and "negative"; "held_out" is not among them.
        split: whether the held-out items were kept out: "sha256" if so, "unknown" for a converted pickle.
        created: UTC, ISO 8601.
        sha256, size: of the model file.
        metrics: on the held-out items when it was last chosen; None before.
        schema_version: of this record.
    """

    collection: str
    name: str
    model_file: str
    derivative_type: TargetName
    embedding_type: str
    dimensionality: Annotated[int, Field(ge=1)]
    parts: Annotated[tuple[EmbeddingPart, ...], Field(min_length=1)]
    estimator: str
    slope: _Finite
    offset: _Finite
    calibration: Literal["platt", "none"]
    threshold: _Probability
    abstain: tuple[_Probability, _Probability] | None
    training: Mapping[str, _Count]
    split: Literal["sha256", "unknown"]
    created: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    size: _Count
    metrics: ClassifierMetrics | None = None
    schema_version: Literal[2] = SCHEMA_VERSION

    @property
    def bound_to(self) -> tuple[str, str, tuple[tuple[str, int, str], ...]]:
        """What versions that are compared share: region, and names, lengths and encoders of the parts."""
        parts = tuple((p.embedding_type, p.dimensionality, p.fingerprint) for p in self.parts)
        return (self.derivative_type, self.embedding_type, parts)

    def sealed(self) -> dict[str, Any]:
        """As JSON types, with the digest of everything else."""
        body = json.loads(json.dumps(asdict(self)))
        return {**body, "digest": digest_of(body)}


def stem_of(collection: str, timestamp: str) -> str:
    """Name of a version's files without suffix, whatever characters the collection's name has."""
    plain = collection
    if not _PLAIN_ID.fullmatch(collection):
        slug = re.sub(r"[^a-z0-9]+", "-", collection.lower()).strip("-")[:40]
        digest = hashlib.sha256(collection.encode("utf-8", "surrogatepass")).hexdigest()[:12]
        plain = f"{slug or 'x'}--{digest}"  # two hyphens: no plain id has them
    return f"collection_{plain}_classifier_{timestamp}" if timestamp else f"collection_{plain}"


def checked(body: Any, where: str) -> ClassifierArtifact:
    """A version as it was stored, its seal and its own consistency checked.

    Raises:
        ClassifierFileError: it is not what was written, or contradicts itself.
    """
    if not isinstance(body, dict):
        raise ClassifierFileError(f"{where} is no classifier; train it again")
    given = {key: value for key, value in body.items() if key != "digest"}
    if body.get("digest") != digest_of(given):
        raise ClassifierFileError(
            f"{where} is damaged: its content does not match its digest; train it again"
        )
    try:
        version: ClassifierArtifact = TypeAdapter(ClassifierArtifact).validate_python(given)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ClassifierFileError(f"{where}: {key}: {first['msg']}; train it again") from error
    check_name(version.model_file, where)
    if JOIN.join(p.embedding_type for p in version.parts) != version.embedding_type:
        raise ClassifierFileError(f"{where} contradicts itself about its embedding types; train it again")
    if sum(p.dimensionality for p in version.parts) != version.dimensionality:
        raise ClassifierFileError(f"{where} contradicts itself about its dimensionality; train it again")
    return version


def check_name(model_file: str, where: str) -> None:
    """Refuse what is not the bare name of a model file.

    Raises:
        ClassifierFileError: a path, a pickle, or another name.
    """
    if model_file.lower().endswith(PICKLES):
        raise ClassifierFileError(
            f"{where} names {model_file!r}, a pickle: it could run any code and is not loaded; "
            "`lmm-classifier collections convert` makes it a safe file"
        )
    if not _NAME.fullmatch(model_file):
        raise ClassifierFileError(f"{where} names {model_file!r}, which is no model file of the store")


def write_version(folder: Path, version: ClassifierArtifact, content: bytes) -> None:
    """Write the model file and then what says that it is there.

    Raises:
        CollectionError: the disk refuses.
    """
    with written():
        replace_file(folder / version.model_file, content)
        path = (folder / version.model_file).with_suffix(".json")
        replace_file(path, json.dumps(version.sealed(), indent=2, sort_keys=True).encode() + b"\n")


def write_linear(
    folder: Path,
    stem: str,
    model: Linear,
    *,
    collection: str,
    name: str,
    target: TargetName,
    parts: tuple[EmbeddingPart, ...],
) -> ClassifierArtifact:
    """Write a logistic regression that was made elsewhere: its own probabilities, and the threshold .5.

    Args:
        folder: the store.
        stem: of its files, as `stem_of` makes it.
        model: d weights and the intercept.
        collection: whose it is.
        name: its name for people.
        target: the part of a photo it looks at.
        parts: of its vectors, d dimensions together.

    Raises:
        CollectionError: the disk refuses.
    """
    content = to_bytes(model)
    version = ClassifierArtifact(
        collection=collection,
        name=name,
        model_file=stem + LINEAR,
        derivative_type=target,
        embedding_type=JOIN.join(part.embedding_type for part in parts),
        dimensionality=len(model.weights),
        parts=parts,
        estimator="logistic-regression",
        slope=1.0,
        offset=0.0,
        calibration="none",
        threshold=0.5,
        abstain=None,
        training={},
        split="unknown",
        created=datetime.now(UTC).isoformat(),
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
    )
    write_version(folder, version, content)
    return version


def read_version(path: Path) -> ClassifierArtifact:
    """Read the JSON file of a version.

    Raises:
        ClassifierFileError: it is gone, damaged, or not about the file beside it.
    """
    try:
        body = load_checksummed(path, SCHEMA_VERSION, "train it again")
    except FileNotFoundError as error:
        raise ClassifierFileError(f"{path}: there is no such file; train it again") from error
    except IndexFolderError as error:
        raise ClassifierFileError(str(error)) from error
    version = checked({**body, "digest": digest_of(body)}, str(path))
    if Path(version.model_file).stem != path.stem:
        raise ClassifierFileError(f"{path} is about {version.model_file!r}, not about the file beside it")
    return version


def to_bytes(model: Linear) -> bytes:
    """Content of the file of a model."""
    return safetensors.numpy.save({"weights": model.weights, "intercept": np.asarray([model.intercept])})


def read_model(folder: Path, version: ClassifierArtifact) -> Linear:
    """The model of a version, every byte of it checked before it is looked at.

    Raises:
        ClassifierFileError: it is gone, changed, no such file, of another dimension, or not finite.
    """
    path = folder / version.model_file
    if path.suffix == FORMER:
        raise ClassifierFileError(f"{path} is of an estimator that is gone; train the collection again")
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > _MAX_MODEL_BYTES:
            raise ClassifierFileError(f"{path} is gone or no plain file; train the collection again")
        content = path.read_bytes()
    except OSError as error:
        raise ClassifierFileError(f"{path}: {error.strerror}; train the collection again") from error
    if len(content) != version.size or hashlib.sha256(content).hexdigest() != version.sha256:
        raise ClassifierFileError(f"{path} is damaged or another file; train the collection again")
    return _linear(content, path, version.dimensionality)


def _linear(content: bytes, path: Path, d: int) -> Linear:
    try:
        arrays = safetensors.numpy.load(content)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ClassifierFileError(f"{path} is no safetensors file; train the collection again") from error
    shapes = {name: array.shape for name, array in sorted(arrays.items())}
    if shapes != {"weights": (d,), "intercept": (1,)}:
        raise ClassifierFileError(f"{path} must hold weights ({d},) and intercept (1,), it holds {shapes}")
    if not all(a.dtype == np.float64 and np.isfinite(a).all() for a in arrays.values()):
        raise ClassifierFileError(f"{path} holds coefficients that are no finite float64 numbers")
    return Linear(arrays["weights"], float(arrays["intercept"][0]))


@contextmanager
def written() -> Iterator[None]:
    """What the shared file functions raise, as an error of this store.

    Raises:
        CollectionError: a file could not be written.
    """
    try:
        yield
    except IndexFolderError as error:
        raise CollectionError(str(error)) from error
