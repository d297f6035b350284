"""Several classifiers over the same photos, each photo embedded once.

`pipeline.run_shared` shares what lines begin with over one batch. The runs of an experiment come one after
the other, so what it is told of their common beginning is kept here: vectors, not photos.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

from PIL import Image

from lmm_classifier.api.classification import Classification, summarise
from lmm_classifier.api.hybrid_classifier import HybridClassifier
from lmm_classifier.corpus.corpus import SkippedFile
from lmm_classifier.corpus.images import open_image
from lmm_classifier.errors import ImageError
from lmm_classifier.pipeline import Pipeline, Step, run_shared
from lmm_classifier.steps.embed import Embed
from lmm_classifier.types import Sample

_NO_PIXELS = Image.new("RGB", (1, 1))  # in place of a photo that no further step looks at


class EmbeddingCache:
    """Answers as `HybridClassifier.classify_files`, for one classifier after the other.

    A photo is decoded for its encoder alone, also where a reranker will look at more of its pixels; that one
    opens the photo again. Kept are the vectors of the latest encoder.
    """

    def __init__(self) -> None:
        self._begun: tuple[Step, ...] = ()
        self._embedded: dict[str, Sample | SkippedFile] = {}

    def __call__(
        self, classifier: HybridClassifier, photos: Iterable[Path]
    ) -> Iterator[Classification | SkippedFile]:
        """Yield the answers in the order of the photos."""
        names = list(map(str, photos))
        steps = classifier.pipeline.steps
        begun = tuple(takewhile(lambda step: isinstance(step, Embed), steps))
        self._embed(begun, classifier, names)
        look = any("image" in step.requires for step in steps[len(begun) :])
        pixels = classifier.pipeline.resolution() if look else None
        cut = classifier.thresholds
        size = classifier.pipeline.batch_size
        for start in range(0, len(names), size):
            batch = [self._embedded[name] for name in names[start : start + size]]
            if look:
                batch = [_seen_again(item, classifier, pixels) for item in batch]
            samples = [item for item in batch if isinstance(item, Sample)]
            finished = iter(run_shared(samples, [steps], {begun: samples})[0])
            for item in batch:
                yield summarise(next(finished), cut) if isinstance(item, Sample) else item

    def _embed(self, begun: tuple[Step, ...], classifier: HybridClassifier, names: Sequence[str]) -> None:
        if begun != self._begun:
            self._begun, self._embedded = begun, {}
        missing = [name for name in dict.fromkeys(names) if name not in self._embedded]
        line = Pipeline(begun, classifier.pipeline.batch_size)
        for name, item in zip(missing, line.run_files(missing, classifier.limits), strict=True):
            self._embedded[name] = replace(item, image=_NO_PIXELS) if isinstance(item, Sample) else item


def _seen_again(
    item: Sample | SkippedFile, classifier: HybridClassifier, pixels: int | None
) -> Sample | SkippedFile:
    """The sample with its photo, opened anew: it may be gone by now."""
    if isinstance(item, SkippedFile):
        return item
    try:
        image = open_image(item.sample_id, target_size=pixels, limits=classifier.limits)
    except ImageError as error:
        return SkippedFile(item.sample_id, error.code, error.reason)
    fresh = Sample.from_image(item.sample_id, image)
    return replace(fresh, embeddings=item.embeddings, timings=item.timings)
