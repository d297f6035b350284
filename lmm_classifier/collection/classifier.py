"""CollectionClassifier: to which collections a photo belongs, from Python."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lmm_classifier.collection.loaded_classifiers import shelf_of
from lmm_classifier.collection.step import Classify
from lmm_classifier.collection.store import DEFAULT_FOLDER
from lmm_classifier.corpus.corpus import SkippedFile
from lmm_classifier.corpus.images import ImageSource, open_image
from lmm_classifier.errors import ConfigError
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.pipeline import Pipeline
from lmm_classifier.types import Membership, Sample, required
from lmm_classifier.yaml_settings import explain


class CollectionClassifier:
    """The classifiers of a store. Retrained ones are picked up; construction opens nothing."""

    def __init__(
        self,
        store: str | os.PathLike[str] = DEFAULT_FOLDER,
        *,
        collections: Sequence[str | int] | None = None,
        encoders: Mapping[str, ModelSpec] | None = None,
        **options: Any,
    ) -> None:
        """Options are those of the step `classify`.

        Raises:
            ConfigError: an unknown option, or one out of range.
        """
        self._options = {**options, "store": Path(store).absolute(), "encoders": dict(encoders or {})}
        self._step = self._made(collections)

    def classify(
        self, photo: ImageSource, collections: Sequence[str | int] | None = None
    ) -> tuple[Membership, ...]:
        """What each collection says of a photo, sorted by collection, numbers first.

        Args:
            photo: path, bytes, PIL image or array.
            collections: which; None: those of the constructor.

        Raises:
            ImageError: the photo cannot be read.
            UnknownCollectionError: there is no store, or none for a collection that is named.
            LmmClassifierError: a collection that is named cannot be used, or a model failed.
        """
        step = self._step if collections is None else self._made(collections)
        image = open_image(photo, target_size=step.resolution() or None)
        [sample] = step.run([Sample.from_image("photo", image)])
        return required(sample.memberships)

    def classify_files(
        self, paths: Iterable[str | Path], batch_size: int = 16
    ) -> Iterator[tuple[str, tuple[Membership, ...]] | SkippedFile]:
        """As `classify`, for many files: path and answers, or why a file was not read; in order."""
        for found in Pipeline((self._step,), batch_size).run_files(paths):
            yield (
                found
                if isinstance(found, SkippedFile)
                else (
                    found.sample_id,
                    required(found.memberships),
                )
            )

    def get_classifier_metadata(self, collection: str | int) -> dict[str, Any]:
        """What is stored of a collection: `model_file`, `derivative_type`, `embedding_type` and more.

        Raises:
            UnknownCollectionError: there is none (a FileNotFoundError).
            ClassifierFileError: the entry is of a wrong type or lacks a key (a ValueError).
        """
        return shelf_of(self._step.store).store.metadata(collection)

    def collections(self) -> tuple[str, ...]:
        """The ids of all collections of the store."""
        return shelf_of(self._step.store).store.snapshot().ids

    def by_embedding_type(self) -> dict[str, dict[str, float | int | None]]:
        """Embedding type -> number of collections and the means of their figures on held-out items."""
        return shelf_of(self._step.store).store.by_embedding_type()

    def _made(self, collections: Sequence[str | int] | None) -> Classify:
        options = {**self._options, "collections": None if collections is None else tuple(collections)}
        try:
            step: Classify = TypeAdapter(Classify).validate_python(options)
        except ValidationError as error:
            raise ConfigError(explain(error, Classify)) from error
        return step
