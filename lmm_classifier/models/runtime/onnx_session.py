"""ONNX files on the processor: where they are, opening them, what goes in and out by name, running them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as state

from lmm_classifier.errors import ModelError, ModelUnavailableError
from lmm_classifier.models.runtime.memory import file_bytes
from lmm_classifier.models.runtime.options import refuse_untaken
from lmm_classifier.models.runtime.pretrained import checkpoint_folder, first_line
from lmm_classifier.models.spec import ModelSpec

_THREADS = 2  # per call; several workers share a machine
_FATAL = 4  # onnxruntime's level of log messages; what is less is raised
_FLOAT, INT64 = "tensor(float)", "tensor(int64)"
_FAILURES = (  # onnxruntime has no base class for them
    state.EPFail,
    state.Fail,
    state.InvalidArgument,
    state.InvalidGraph,
    state.InvalidProtobuf,
    state.NoModel,
    state.NoSuchFile,
    state.NotImplemented,
    state.RuntimeException,
    RuntimeError,
    ValueError,
)


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output that a graph must have.

    Attributes:
        shape: per axis its length, which the graph may leave open; "any" where its length must be left
            open, because it changes from call to call; None where anything will do.
        type: as onnxruntime names it.
    """

    shape: tuple[int | str | None, ...]
    type: str = _FLOAT

    def fits(self, node: Any) -> bool:
        """Whether an input or output of a graph is one."""
        return (
            node.type == self.type
            and len(node.shape) == len(self.shape)
            and all(
                wanted is None or not isinstance(side, int) or side == wanted
                for side, wanted in zip(node.shape, self.shape, strict=True)
            )
        )

    def __str__(self) -> str:
        return f"{self.type} [{', '.join('any' if side is None else str(side) for side in self.shape)}]"


def refuse_settings(spec: ModelSpec, kind: str) -> None:
    """Raise a ModelError if a spec asks for what an ONNX file on the processor decides itself."""
    refuse_untaken(spec)
    if spec.device not in ("auto", "cpu") or spec.dtype not in ("auto", "float32"):
        raise ModelError(
            f"{kind} {spec.family!r} runs on the processor as the file says; leave device and dtype out"
        )


def files_of(spec: ModelSpec, default: str, names: Sequence[str], beside: Sequence[str] = ()) -> list[Path]:
    """The ONNX files that weights mean, and then the files beside them.

    Args:
        spec: its weights are a local folder or hub id, and "#" with other file names, separated by
            commas, if they are not called `names`: "./mine#small-encoder.onnx,small-decoder.onnx".
        default: the weights where the spec names none.
        names: of the ONNX files, from the folder.
        beside: of files that need not be there.

    Raises:
        ModelUnavailableError: an ONNX file is neither on this machine nor reachable.
        ModelError: other names than there are files, or ones that lead out of the folder.
    """
    where, marked, given = (spec.weights or default).partition("#")
    files = given.split(",") if marked else list(names)
    inside = all(name and not {"..", "/"} & set(PurePosixPath(name).parts) for name in files)
    if len(files) != len(names) or not inside:
        raise ModelError(
            f"weights {spec.weights!r} must name {len(names)} files of the folder after #, "
            f"in place of {', '.join(names)}"
        )
    folder = checkpoint_folder(spec, where or default, [*files, *beside])
    for name in files:
        if not (folder / name).is_file():
            raise ModelUnavailableError(
                f"model {where or default!r} has no file {name!r}; another name is written behind #"
            )
    return [folder / name for name in (*files, *beside)]


def open_session(path: Path, weights: str, family: str) -> tuple[Any, str]:
    """A session of the file and its SHA-256; of its bytes, so that no second file takes part unseen.

    Raises:
        ModelError: it cannot be read, or is no model that onnxruntime can run.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = _THREADS, 1
    options.log_severity_level = _FATAL
    try:
        content = path.read_bytes()
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except (OSError, *_FAILURES) as error:
        raise ModelError(f"model {weights!r} cannot be opened as {family!r}: {first_line(error)}") from error
    file_bytes[session] = len(content)
    return session, hashlib.sha256(content).hexdigest()


def run_session(
    session: Any, outputs: Sequence[str], inputs: Mapping[str, NDArray[Any]], weights: str, what: str
) -> list[NDArray[Any]]:
    """The named outputs for the named inputs.

    Raises:
        ModelError: the graph failed on `what`, such as "3 images".
    """
    try:
        values: list[NDArray[Any]] = session.run(list(outputs), dict(inputs))
    except _FAILURES as error:
        raise ModelError(f"{weights!r} failed on {what}: {first_line(error)}") from error
    return values


class BoundModel:
    """An ONNX file whose inputs and outputs have been found to be the expected ones, by name and shape.

    The order in the file does not matter, and outputs that nobody asks for are left alone.

    Raises:
        ModelError: it cannot be opened, or expects or gives something else.
    """

    def __init__(
        self, path: Path, family: str, inputs: Mapping[str, Port], outputs: Mapping[str, Port]
    ) -> None:
        self._weights, self._outputs = str(path), list(outputs)
        self._session, _ = open_session(path, self._weights, family)
        _check(self._weights, "inputs", self._session.get_inputs(), inputs, exactly=True)
        _check(self._weights, "outputs", self._session.get_outputs(), outputs, exactly=False)

    def run(self, inputs: Mapping[str, NDArray[Any]], what: str) -> dict[str, NDArray[Any]]:
        """The expected outputs, by name.

        Raises:
            ModelError: the graph failed on `what`.
        """
        values = run_session(self._session, self._outputs, inputs, self._weights, what)
        return dict(zip(self._outputs, values, strict=True))


def _check(weights: str, what: str, nodes: Sequence[Any], ports: Mapping[str, Port], exactly: bool) -> None:
    found = {node.name: node for node in nodes}
    if (exactly and found.keys() - ports.keys()) or ports.keys() - found.keys():
        raise ModelError(
            f"model {weights!r} has the {what} {', '.join(found)}; expected are {', '.join(ports)}"
        )
    for name, port in ports.items():
        if not port.fits(found[name]):
            raise ModelError(
                f"model {weights!r}: {what[:-1]} {name!r} is {found[name].type} {found[name].shape}; "
                f"expected is {port}"
            )
