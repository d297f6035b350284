"""What an ONNX file does not say about itself: how a photo becomes its input, its output a vector."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lmm_classifier.errors import ConfigError, ModelError, ModelUnavailableError
from lmm_classifier.models.runtime.pretrained import is_local, local_path
from lmm_classifier.types import FloatArray
from lmm_classifier.yaml_settings import explain, read_yaml

_SUFFIXES = (".yaml", ".yml", ".json")
_Side = Annotated[int, Field(ge=1, le=8192)]
_Number = Annotated[float, Field(allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Description(BaseModel):
    """A YAML or JSON file, beside the model under the same name or naming it.

    A pixel value v in 0..255 enters the model as (v * scale - mean) / std.

    Attributes:
        model: the ONNX file, from this file's folder; left out, the one of the same name.
        input: name in the graph; left out, the only one.
        output: name in the graph; left out, the first one.
        size: height and width of the input in px.
        layout: order of the input's axes; N is the batch.
        dtype: of the input; uint8 takes pixel values as they are.
        channels: order of the colours.
        scale: such as 1/255.
        mean: per channel, in the order of `channels`.
        std: likewise.
        resize: "squash" ignores the aspect ratio; "centre-crop" takes the largest centred part that has
            the input's aspect ratio.
        crop: share of that part's width and height that is taken, such as .875 (224 of 256 px).
        interpolation: as Pillow names it.
        pooling: of an output (n, tokens, d), or (n, d, h, w) or (n, h, w, d) as `layout` says: the first
            token ("cls") or the mean; "none" where there is one vector per image.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Path | None = None
    input: str | None = None
    output: str | None = None
    size: tuple[_Side, _Side]
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    dtype: Literal["float32", "uint8"] = "float32"
    channels: Literal["RGB", "BGR"] = "RGB"
    scale: _Number = 1.0
    mean: tuple[_Number, _Number, _Number] = (0.0, 0.0, 0.0)
    std: tuple[_Positive, _Positive, _Positive] = (1.0, 1.0, 1.0)
    resize: Literal["squash", "centre-crop"] = "squash"
    crop: Annotated[float, Field(gt=0, le=1)] = 1.0
    interpolation: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] = "bicubic"
    pooling: Literal["none", "cls", "mean"] = "none"

    @model_validator(mode="after")
    def _used(self) -> Self:
        if self.dtype == "uint8" and {"scale", "mean", "std"} & self.model_fields_set:
            raise ValueError("a uint8 input takes pixel values as they are; leave out scale, mean and std")
        if self.resize == "squash" and self.crop != 1:
            raise ValueError("`crop` needs `resize: centre-crop`")
        return self

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Of one image, in the order of `layout`."""
        return (3, *self.size) if self.layout == "NCHW" else (*self.size, 3)

    @property
    def input_size(self) -> int | None:
        """Px of the shorter side after resizing the whole photo by as much as its part; None: all pixels."""
        if self.interpolation == "nearest":
            return None  # it takes single pixels, and a reduced decode would hand it means
        return math.ceil(max(self.size) / self.crop)

    def canonical(self, output: str) -> str:
        """JSON of what decides the vectors; how files and inputs are called does not."""
        settings = self.model_dump(mode="json", exclude={"model", "input"}) | {"output": output}
        return json.dumps(settings, sort_keys=True)


def find(weights: str) -> tuple[Path, Description]:
    """The ONNX file that a path means, and its description.

    Raises:
        ModelUnavailableError: one of the files does not exist.
        ModelError: no path, or the description is wrong.
    """
    if not is_local(weights):
        raise ModelError(
            f"encoder 'onnx' needs a path as `weights`, starting with ./, ../, ~ or /; got {weights!r}"
        )
    named = local_path(weights)
    if not named.is_file():
        raise ModelUnavailableError(f"model file {weights!r} does not exist; check `weights`")
    if named.suffix in _SUFFIXES:
        description = _read(named)
        model = named.parent / description.model if description.model else named.with_suffix(".onnx")
    else:
        beside = [named.with_suffix(suffix) for suffix in _SUFFIXES]
        found = next((path for path in beside if path.is_file()), None)
        if found is None:
            raise ModelUnavailableError(
                f"model file {weights!r} has no description; write {beside[0].name} beside it, such as "
                "`{size: [224, 224], layout: NCHW, scale: 0.00392, resize: squash}`"
            )
        description, model = _read(found), named
    if not model.is_file():
        raise ModelUnavailableError(f"model file {str(model)!r}, described by {weights!r}, does not exist")
    return model, description


def model_input(images: Sequence[Image.Image], description: Description) -> Any:
    """Photos of any size as the graph takes them: (n, *description.input_shape) of its dtype."""
    height, width = description.size
    filter_ = Image.Resampling[description.interpolation.upper()]
    resized = [image.resize((width, height), filter_, _part(image, description)) for image in images]
    pixels = np.stack([np.asarray(image) for image in resized])  # uint8 (n, height, width, 3)
    if description.channels == "BGR":
        pixels = pixels[..., ::-1]
    if description.dtype == "float32":
        scaled = pixels.astype(np.float32) * np.float32(description.scale)
        pixels = (scaled - np.asarray(description.mean, np.float32)) / np.asarray(description.std, np.float32)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2) if description.layout == "NCHW" else pixels)


def pooled(output: FloatArray, n: int, description: Description, weights: str) -> FloatArray:
    """One vector per image, float32 (n, d), from what the graph gave."""
    if output.ndim >= 2 and len(output) == n:
        sides = output.shape[1:]
        if description.pooling == "none" and sum(side > 1 for side in sides) <= 1:
            return output.reshape(n, -1)
        if description.pooling == "cls" and len(sides) == 2:
            return output[:, 0]
        if description.pooling == "mean" and len(sides) == 2:
            return np.asarray(output.mean(axis=1))
        if description.pooling == "mean" and len(sides) == 3:
            return np.asarray(output.mean(axis=(2, 3) if description.layout == "NCHW" else (1, 2)))
    raise ModelError(
        f"model {weights!r} gave {output.shape} for {n} images, of which `pooling: {description.pooling}` "
        "makes no vectors; describe another pooling or output"
    )


def _part(image: Image.Image, description: Description) -> tuple[float, float, float, float]:
    """The part of an image that is resized: (x0, y0, x1, y1) in px."""
    if description.resize == "squash":
        return (0, 0, *image.size)
    height, width = description.size
    share = description.crop * min(image.width / width, image.height / height)
    x, y = (image.width - share * width) / 2, (image.height - share * height) / 2
    return (max(x, 0), max(y, 0), min(x + share * width, image.width), min(y + share * height, image.height))


def _read(path: Path) -> Description:
    try:
        return Description.model_validate(read_yaml(path))
    except ValidationError as error:
        raise ModelError(f"model description {str(path)!r}: {explain(error, Description)}") from error
    except ConfigError as error:
        raise ModelError(f"model description {str(path)!r}: {error}") from error
