"""HybridClassifier: the documented face over embed, retrieve, vote, open_set and rerank."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from os import PathLike, fspath
from pathlib import Path

from lmm_classifier.config import PipelineConfig
from lmm_classifier.corpus.corpus import SkippedFile
from lmm_classifier.corpus.images import DEFAULT_LIMITS, ImageLimits, ImageSource, open_image
from lmm_classifier.decision.policy import Thresholds
from lmm_classifier.errors import ConfigError, ImageError
from lmm_classifier.index.search import open_index
from lmm_classifier.result import Classification, summarise
from lmm_classifier.steps.open_set import OpenSet
from lmm_classifier.steps.rerank import Rerank
from lmm_classifier.steps.retrieve import Retrieve
from lmm_classifier.types import UNKNOWN, Sample

NEEDED = frozenset({"neighbours", "scores", "verdicts"})


class HybridClassifier:
    """Classify images by retrieval from a labelled index, a policy for unknowns, and a reranker.

    Constructing it opens nothing; models and index are opened on first use, the reranker when the first
    uncertain image arrives. `load` opens encoder and index now.

        classifier = HybridClassifier(PipelineConfig.from_yaml("config/demo.yaml"))
        answer = classifier.classify("photo.jpg")
        answer.label, answer.score, answer.used_reranker, answer.reason

    Raises:
        ConfigError: the steps do not end in a decision.
    """

    def __init__(self, config: PipelineConfig, limits: ImageLimits = DEFAULT_LIMITS) -> None:
        self.config = config
        self.pipeline = config.build()
        self.limits = limits
        if missing := NEEDED - frozenset().union(*(step.provides for step in self.pipeline.steps)):
            raise ConfigError(f"a classifier needs steps that provide {', '.join(sorted(missing))}")

    @classmethod
    def from_yaml(cls, path: str | Path) -> HybridClassifier:
        """Shorthand for `HybridClassifier(PipelineConfig.from_yaml(path))`."""
        return cls(PipelineConfig.from_yaml(path))

    def load(self) -> None:
        """Open everything but the reranker now; the index first, for it is quick to be wrong.

        Raises:
            IndexFolderError, ModelError, ConfigError: as their messages say.
        """
        self.check_index()
        for step in self.pipeline.steps:
            if not isinstance(step, Rerank):
                step.load()

    def check_index(self) -> None:
        """Open and verify the index, and check that it fits the settings. Opens no model.

        Raises:
            IndexFolderError: it is missing or damaged.
            ConfigError: it has none of the configured labels, or uses the reserved label "unknown"
                although unknowns are allowed.
        """
        for step in self.pipeline.steps:
            if not isinstance(step, Retrieve):
                continue
            labels = open_index(step.index).labels
            if step.labels and not set(step.labels) & set(labels):
                raise ConfigError(
                    f"{step.index} has none of the configured labels; it has {', '.join(labels)}"
                )
            if self.config.allow_unknown and UNKNOWN in labels:
                raise ConfigError(
                    f"{step.index} has a label named {UNKNOWN!r}, which is reserved: rename it, or set "
                    "allow_unknown: false"
                )

    @property
    def thresholds(self) -> Thresholds | None:
        """The cuts in force; None when the pipeline has no `open_set` step."""
        return next((step.thresholds() for step in self.pipeline.steps if isinstance(step, OpenSet)), None)

    @property
    def labels_without_images(self) -> tuple[str, ...]:
        """Configured labels that the index has no image of, and which thus are never answered."""
        steps = [step for step in self.pipeline.steps if isinstance(step, Retrieve) and step.labels]
        return tuple(
            label for s in steps for label in s.labels or () if label not in open_index(s.index).labels
        )

    def classify(self, image: ImageSource) -> Classification:
        """Classify one image: a path, encoded bytes, a PIL image or a numpy array.

        Raises:
            ImageError: the image cannot be read.
            LmmClassifierError: encoder or index cannot be used. A failing reranker does not raise: the
                answer of retrieval stands, with `degraded` saying why.
        """
        return self.classify_batch([image])[0]

    def classify_batch(self, images: Sequence[ImageSource]) -> list[Classification]:
        """Classify images together; answers in the same order, the same as one by one.

        Raises:
            ImageError: as in `classify`; the text tells which image. Nothing is classified then.
        """
        samples = []
        for i, image in enumerate(images):
            try:
                samples.append(self._sample(image, i))
            except ImageError as error:
                raise ImageError(error.code, f"image {i}: {error.reason}") from error
        return list(self._run(samples))

    def classify_files(self, paths: Iterable[str | Path]) -> Iterator[Classification | SkippedFile]:
        """Classify files as they are read, a batch at a time; an unreadable one yields its reason.

        Answers come in the order of the paths, and memory does not grow with their number.
        """
        source = iter(paths)
        while batch := list(islice(source, self.pipeline.batch_size)):
            opened = [self._open(path) for path in batch]
            answers = self._run([item for item in opened if isinstance(item, Sample)])
            for item in opened:
                yield next(answers) if isinstance(item, Sample) else item

    def _run(self, samples: Iterable[Sample]) -> Iterator[Classification]:
        cut = self.thresholds
        return (summarise(sample, cut) for sample in self.pipeline.run(samples))

    def _open(self, path: str | Path) -> Sample | SkippedFile:
        try:
            return self._sample(path, 0)
        except ImageError as error:
            return SkippedFile(str(path), error.code, error.reason)

    def _sample(self, image: ImageSource, position: int) -> Sample:
        name = fspath(image) if isinstance(image, str | PathLike) else f"image-{position}"
        return Sample.from_image(name, open_image(image, limits=self.limits))
