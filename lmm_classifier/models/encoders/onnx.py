"""Any image embedding in an ONNX file, on the processor; its description says what goes in and comes out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from lmm_classifier.errors import ModelError
from lmm_classifier.models.runtime.onnx_description import Description, find, model_input, pooled
from lmm_classifier.models.runtime.onnx_session import open_session, refuse_settings, run_session
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.registry import did_you_mean
from lmm_classifier.types import EncoderContract, FloatArray

_TYPES = {"float32": "tensor(float)", "uint8": "tensor(uint8)"}


class OnnxEncoder:
    """The pooled output of the graph, cast to float32 and L2-normalised.

    Weights are the path of an ONNX file with a description beside it, or of the description.
    """

    def __init__(self, spec: ModelSpec) -> None:
        refuse_settings(spec, "encoder")
        self._weights = spec.weights
        path, self._description = find(spec.weights)
        self._session, digest = open_session(path, spec.weights, spec.family)
        self._input, self._batch = _input(self._session, self._description, spec.weights)
        self._output = _output(self._session, self._description, spec.weights)
        self._contract = EncoderContract(
            name="onnx",
            weights=spec.weights,
            revision="",
            weights_digest=digest,
            preprocessing=self._description.canonical(self._output),
            dim=self._run([Image.new("RGB", (1, 1))]).shape[1],
            dtype="float32",
        )

    @property
    def contract(self) -> EncoderContract:
        return self._contract

    @property
    def input_size(self) -> int | None:
        return self._description.input_size

    def encode(self, images: Sequence[Image.Image]) -> FloatArray:
        vectors = self.encode_raw(images)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not (np.isfinite(norms) & (norms > 0)).all():
            raise ModelError(
                f"{self._weights!r} gave a vector of zeros or without numbers; it has no direction"
            )
        return np.asarray(vectors / norms, np.float32)

    def encode_raw(self, images: Sequence[Image.Image]) -> FloatArray:
        if not images:
            return np.empty((0, self._contract.dim), np.float32)
        step = self._batch or len(images)
        return np.concatenate([self._run(images[i : i + step]) for i in range(0, len(images), step)])

    def _run(self, images: Sequence[Image.Image]) -> FloatArray:
        """Raw vectors, float32 (len(images), d); at most as many images as the graph takes at once."""
        pixels = model_input(images, self._description)
        fill = max((self._batch or 0) - len(images), 0)
        inputs = {self._input: np.pad(pixels, [(0, fill), (0, 0), (0, 0), (0, 0)])}
        [output] = run_session(self._session, [self._output], inputs, self._weights, f"{len(images)} images")
        return pooled(np.asarray(output, np.float32), len(pixels) + fill, self._description, self._weights)[
            : len(images)
        ]


def _input(session: Any, description: Description, weights: str) -> tuple[str, int | None]:
    """The name of the image input, and how many images the graph takes at once if it is fixed."""
    inputs = session.get_inputs()
    name = description.input or inputs[0].name
    if [node.name for node in inputs] != [name]:
        found = ", ".join(repr(node.name) for node in inputs)
        raise ModelError(f"model {weights!r} has the inputs {found}; one is needed, described as {name!r}")
    shape, expected = inputs[0].shape, description.input_shape
    fits = len(shape) == 4 and all(
        not isinstance(side, int) or side == wanted for side, wanted in zip(shape[1:], expected, strict=True)
    )
    if not fits or inputs[0].type != _TYPES[description.dtype]:
        raise ModelError(
            f"model {weights!r} takes {inputs[0].type} {shape} as {name!r}, but is described as "
            f"{_TYPES[description.dtype]} {['n', *expected]}; correct size, layout or dtype"
        )
    return name, shape[0] if isinstance(shape[0], int) else None


def _output(session: Any, description: Description, weights: str) -> str:
    names = tuple(node.name for node in session.get_outputs())
    if description.output is not None and description.output not in names:
        raise ModelError(
            f"model {weights!r} has no output {description.output!r}{did_you_mean(description.output, names)}"
        )
    return description.output or names[0]
