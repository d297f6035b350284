"""What a program asks of one photo, without settings and without an index.

    from lmm_classifier import classify_image, embed, labels, segment, similarity

Models are opened on first use and kept. A photo is anything that `open_image` takes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from pydantic import ValidationError

from lmm_classifier.corpus.images import ImageSource, open_image
from lmm_classifier.errors import ConfigError
from lmm_classifier.models.base import input_size_of
from lmm_classifier.models.loading import load_encoder
from lmm_classifier.models.segmentation.base import Mask, open_photo
from lmm_classifier.models.segmentation.point_prompts import BoxFormat, Point, XywhOrXyxy
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.steps.label import Label
from lmm_classifier.types import FloatArray, LabelScore, Sample, required
from lmm_classifier.yaml_settings import explain

_CLASSIFIER = ModelSpec("image-classifier")
_ENCODER = ModelSpec("dinov2")
_SEGMENTER = ModelSpec("sam2")
_EPS = 1e-12
"""Length below which a vector has no direction."""


def classify_image(
    image: ImageSource, top_k: int | None = 5, model: ModelSpec = _CLASSIFIER
) -> tuple[LabelScore, ...]:
    """The likeliest classes of a photo, best first.

    Args:
        image: path, bytes, PIL image or array.
        top_k: at most so many; None for all.
        model: the classifier, by default ConvNeXt with the 1,000 classes of ImageNet.

    Raises:
        ConfigError: `top_k` is out of range, or there is no such classifier.
        ImageError: the photo cannot be read.
        ModelError: the classifier cannot be opened, or failed.
    """
    return _labelled(image, _label(model, top_k, 0.0))


def labels(image: ImageSource, min_score: float = 0.5, model: ModelSpec = _CLASSIFIER) -> list[str]:
    """The names of all classes of at least this probability, best first, each with its synonyms.

    Args:
        image: path, bytes, PIL image or array.
        min_score: in [0, 1].
        model: as for `classify_image`.

    Raises:
        ConfigError, ImageError, ModelError: as `classify_image`.
    """
    found = _labelled(image, _label(model, None, min_score))
    return [name for each in found for name in (each.label, *each.synonyms)]


def embed(image: ImageSource, encoder: ModelSpec = _ENCODER) -> FloatArray:
    """The vector of a photo.

    Args:
        image: path, bytes, PIL image or array.
        encoder: by default DINOv2, 768 dimensions.

    Returns:
        float32 (d,), of L2 norm 1.

    Raises:
        ConfigError: there is no such encoder.
        ImageError: the photo cannot be read.
        ModelError: the encoder cannot be opened, or failed.
    """
    model = load_encoder(encoder)
    vector: FloatArray = model.encode([open_image(image, target_size=input_size_of(model))])[0]
    return vector


def segment(
    image: ImageSource,
    *,
    point: Point | None = None,
    points: Sequence[Point] = (),
    negative_points: Sequence[Point] = (),
    box: XywhOrXyxy | None = None,
    box_format: BoxFormat = "xywh",
    multimask: bool = False,
    model: ModelSpec = _SEGMENTER,
) -> list[Mask]:
    """Cut out what a point, several, a box, or both mean; without any, what is in the centre.

    To ask several times about one photo, encode it once with `open_photo`.

    Args:
        image: path, bytes, PIL image or array.
        point: (x, y) px, in what is meant.
        points: several.
        negative_points: in what is not meant.
        box: around it: (x, y, width, height) px.
        box_format: "xyxy" if the box is (x0, y0, x1, y1).
        multimask: all that may be meant, the best first, instead of the best.
        model: the segmenter, by default SAM 2.

    Returns:
        masks, bool (h, w) of the photo, each with its score.

    Raises:
        ConfigError: a point outside the photo, an empty box, or there is no such segmenter.
        ImageError: the photo cannot be read.
        ModelError: the segmenter cannot be opened, or failed.
    """
    return open_photo(model, open_image(image)).masks(
        point=point,
        points=points,
        negative_points=negative_points,
        box=box,
        box_format=box_format,
        multimask=multimask,
    )


def similarity(a: ArrayLike, b: ArrayLike) -> float:
    """Cosine of the angle between two vectors (d,), in [-1, 1]; 0 where one of them has no length.

    Raises:
        ValueError: they are no two finite vectors of one length.
    """
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if x.ndim != 1 or x.shape != y.shape or not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError(f"similarity takes two finite vectors of one length, got {x.shape} and {y.shape}")
    cosine = x @ y / max(float(np.linalg.norm(x) * np.linalg.norm(y)), _EPS)
    return float(np.clip(cosine, -1, 1))


def _label(model: ModelSpec, top_k: int | None, min_score: float) -> Label:
    try:
        return Label(model, top_k, min_score)
    except ValidationError as error:
        raise ConfigError(explain(error, Label)) from error


def _labelled(image: ImageSource, step: Label) -> tuple[LabelScore, ...]:
    [sample] = step.run([Sample.from_image("image", open_image(image))])
    return required(sample.labelings)[0]
