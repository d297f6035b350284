"""HybridClassifier: the documented face over the steps from embed to rerank."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from os import PathLike, fspath
from pathlib import Path
from typing import TypeVar

from lmm_classifier.api.classification import Classification, summarise
from lmm_classifier.config.pipeline import PipelineConfig
from lmm_classifier.corpus.corpus import SkippedFile
from lmm_classifier.corpus.images import DEFAULT_LIMITS, ImageLimits, ImageSource, open_image
from lmm_classifier.decision.gates import Gates
from lmm_classifier.decision.policy import Thresholds
from lmm_classifier.errors import ConfigError, EncoderMismatchError, ImageError
from lmm_classifier.index.calibration import read_calibration
from lmm_classifier.index.search import describe_encoder, encoders_of, open_index
from lmm_classifier.models.loading import load_encoder
from lmm_classifier.steps.embed import Embed
from lmm_classifier.steps.open_set import OpenSet
from lmm_classifier.steps.rerank import Rerank
from lmm_classifier.steps.retrieve import Retrieve
from lmm_classifier.steps.text_prior import TextPrior
from lmm_classifier.steps.vote import Vote
from lmm_classifier.types import UNKNOWN, Sample

_S = TypeVar("_S")
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
        self._checked = False
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
        for embed, retrieve in product(self.steps_of(Embed), self.steps_of(Retrieve)):
            retrieve.open(load_encoder(embed.encoder).contract)

    def check_index(self) -> None:
        """Open and verify the index, and check that it fits the settings. Opens no model.

        Raises:
            IndexFolderError: it is missing or damaged, or its calibration is.
            EncoderMismatchError: it was built by an encoder of another family.
            ConfigError: it has none of the configured labels, uses the reserved label "unknown" although
                unknowns are allowed, or was calibrated for other settings; or the text prior uses that
                label, or an encoder that no photo goes through.
        """
        allow_unknown = any(step.allow_unknown for step in self.steps_of(OpenSet))
        families = {step.encoder.family for step in self.steps_of(Embed)}
        for step in self.steps_of(Retrieve):
            index = open_index(step.index)
            encoders = encoders_of(step.index)
            if families and not families & {encoder.name for encoder in encoders}:
                raise EncoderMismatchError(
                    f"{step.index} was built by encoder {' and '.join(map(describe_encoder, encoders))}, the "
                    "settings say "
                    f"{', '.join(sorted(families))}; set `encoder` to match, or rebuild the index"
                )
            if step.labels and not set(step.labels) & set(index.labels):
                raise ConfigError(
                    f"{step.index} has none of the configured labels; it has {', '.join(index.labels)}"
                )
            if allow_unknown and UNKNOWN in index.labels:
                raise ConfigError(
                    f"{step.index} has a label named {UNKNOWN!r}, which is reserved: rename it, or set "
                    "allow_unknown: false"
                )
        for prior in self._text_priors:
            if prior.encoder.family not in families:
                raise ConfigError(
                    f"text_prior has encoder {prior.encoder.family}, the photos are embedded by "
                    f"{', '.join(sorted(families)) or 'none'}; give both steps the same encoder"
                )
            if allow_unknown and UNKNOWN in (prior.labels or ()):
                raise ConfigError(
                    f"text_prior has a label named {UNKNOWN!r}, which is reserved: leave it out, or set "
                    "allow_unknown: false"
                )
        for rerank in self.steps_of(Rerank):
            if rerank.index is not None and not families & {e.name for e in encoders_of(rerank.index)}:
                raise EncoderMismatchError(
                    f"{rerank.index}, which exemplars come from, was built by "
                    f"{' and '.join(map(describe_encoder, encoders_of(rerank.index)))}; set rerank.index to "
                    "an index of the encoder in use"
                )
        self._refuse_foreign_calibration()
        self._checked = True

    @property
    def thresholds(self) -> Thresholds | Gates | None:
        """The policy in force; None when the pipeline has no `open_set` step."""
        return next((step.policy() for step in self.steps_of(OpenSet)), None)

    @property
    def unanswerable_labels(self) -> tuple[str, ...]:
        """Configured labels with neither an image in the index nor a text prior: they are never answered."""
        named = {label for prior in self._text_priors for label in prior.labels or ()}
        return tuple(
            label
            for step in self.steps_of(Retrieve)
            for label in step.labels or ()
            if label not in open_index(step.index).labels and label not in named
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
                raise ImageError(error.code, f"{_name(image, i)}: {error.reason}") from error
        return list(self._run(samples))

    def classify_files(self, paths: Iterable[str | Path]) -> Iterator[Classification | SkippedFile]:
        """Classify files as they are read, a batch at a time; an unreadable one yields its reason.

        Answers come in the order of the paths, and memory does not grow with their number.
        """
        self._check_once()
        cut = self.thresholds
        for finished in self.pipeline.run_files(paths, self.limits):
            yield summarise(finished, cut) if isinstance(finished, Sample) else finished

    def _run(self, samples: Iterable[Sample]) -> Iterator[Classification]:
        self._check_once()
        cut = self.thresholds
        return (summarise(sample, cut) for sample in self.pipeline.run(samples))

    def _check_once(self) -> None:
        if not self._checked:
            self.check_index()

    def _sample(self, image: ImageSource, position: int) -> Sample:
        return Sample.from_image(
            _name(image, position),
            open_image(image, target_size=self.pipeline.resolution(), limits=self.limits),
        )

    def steps_of(self, kind: type[_S]) -> list[_S]:
        """The steps of one kind, in order."""
        return [step for step in self.pipeline.steps if isinstance(step, kind)]

    @property
    def _text_priors(self) -> list[TextPrior]:
        """Those that take part."""
        return [step for step in self.steps_of(TextPrior) if step.weight]

    def _refuse_foreign_calibration(self) -> None:
        """A calibration holds for the neighbours, labels and text prior it was fitted under, and no other."""
        texts: list[tuple[float, float | None]] = [
            (prior.weight, prior.temperature) for prior in self._text_priors
        ]
        for vote, retrieve in product(self.steps_of(Vote), self.steps_of(Retrieve)):
            fitted = read_calibration(vote.calibration) if vote.calibration else None
            if fitted is None:
                continue
            made = fitted.calibration
            fitted_texts = [(made.text_weight, made.text_temperature)] if made.text_weight else []
            differing = {
                "temperature": (made.head.temperature, vote.temperature or made.head.temperature),
                "labels": (made.labels, retrieve.labels and tuple(sorted(retrieve.labels))),
                "text prior": (_prior(fitted_texts), _prior(texts)),
            }
            for name, (then, now) in differing.items():
                if then != now:
                    raise ConfigError(
                        f"{vote.calibration} was calibrated with {name} {then}, the settings say {now}: "
                        "calibrate again, or set both thresholds"
                    )
            if retrieve.k < made.depth:
                raise ConfigError(
                    f"{vote.calibration} was calibrated with {made.depth} neighbours, the settings say top_k "
                    f"{retrieve.k}: set at least {made.depth}, or calibrate again"
                )
            self._refuse_missing_encoders(made.encoders, retrieve.index)
        for rerank in self.steps_of(Rerank):
            rerank.trial()

    def _refuse_missing_encoders(self, fingerprints: Sequence[str], index: Path) -> None:
        families = {step.encoder.family for step in self.steps_of(Embed)}
        for encoder in encoders_of(index):
            if encoder.fingerprint in fingerprints and families and encoder.name not in families:
                raise ConfigError(
                    f"{index} was calibrated with encoder {describe_encoder(encoder)}, which no photo goes "
                    "through: add an `embed` step for it, or calibrate again"
                )


def _prior(texts: Sequence[tuple[float, float | None]]) -> str:
    described = [f"text weight {weight} (temperature {temperature})" for weight, temperature in texts]
    return " and ".join(described) or "text weight 0"


def _name(image: ImageSource, position: int) -> str:
    return fspath(image) if isinstance(image, str | PathLike) else f"image-{position}"
