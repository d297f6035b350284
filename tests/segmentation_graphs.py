"""ONNX files with the names and shapes of SAM 2 and DETR, whose right answers are known beforehand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

value, node = helper.make_tensor_value_info, helper.make_node
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
FEATURES: dict[str, list[Any]] = {
    "high_res_feats_0": [1, 32, 256, 256],
    "high_res_feats_1": [1, 64, 128, 128],
    "image_embed": [1, 256, 64, 64],
}
PROMPT: dict[str, list[Any]] = {
    "point_coords": ["B", "N", 2],
    "point_labels": ["B", "N"],
    "mask_input": ["B", 1, 256, 256],
    "has_mask_input": [1],
}


def save(
    path: Path,
    nodes: Sequence[Any],
    inputs: Mapping[str, Sequence[Any]],
    outputs: Mapping[str, Sequence[Any]],
    constants: Mapping[str, Any],
    types: Mapping[str, int] | None = None,
) -> None:
    graph = helper.make_graph(
        list(nodes),
        "known",
        [value(name, (types or {}).get(name, FLOAT), shape) for name, shape in inputs.items()],
        [value(name, FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())


def write_encoder(path: Path, side: int = 1024) -> None:
    """Features are means of the input on grids; the first three channels are its colours."""
    nodes, constants = [], {}
    for (name, shape), factor in zip(FEATURES.items(), (4, 8, 16), strict=True):
        weights = np.zeros((shape[1], 3, 1, 1), np.float32)
        weights[:3, :, 0, 0] = np.eye(3)
        constants[f"{name}_w"] = weights
        pool = node("AveragePool", ["image"], [f"{name}_p"], kernel_shape=[factor] * 2, strides=[factor] * 2)
        nodes += [pool, node("Conv", [f"{name}_p", f"{name}_w"], [name])]
    shapes = {name: [1, s[1], s[2] * side // 1024, s[3] * side // 1024] for name, s in FEATURES.items()}
    save(path, nodes, {"image": [1, 3, side, side]}, shapes, constants)


def write_decoder(
    path: Path,
    logits: np.ndarray,
    scores: Sequence[float],
    reverse: bool = False,
    rename: Mapping[str, str] | None = None,
    outputs: Mapping[str, Sequence[Any]] | None = None,
) -> None:
    """Answers with the given logits (m, 256, 256), plus the previous ones if told that there are some."""
    inputs = {"image_embed": FEATURES["image_embed"], **FEATURES, **PROMPT}
    inputs = dict(reversed(inputs.items())) if reverse else inputs
    m = len(logits)
    outputs = outputs or {"masks": ["B", m, 256, 256], "iou_predictions": ["B", m]}
    outputs = dict(reversed(outputs.items())) if reverse else outputs
    nodes = [
        node("Mul", ["mask_input", "has_mask_input"], ["previous"]),
        node("Add", ["given", "previous"], ["masks"]),
        node("Identity", ["scores"], ["iou_predictions"]),
    ]
    if "low_res_masks" in outputs:
        nodes.append(node("Identity", ["given"], ["low_res_masks"]))
    constants = {
        "given": logits[None].astype(np.float32),
        "scores": np.asarray([list(scores)], np.float32),
    }
    save(path, nodes, inputs, outputs, constants)
    if rename:
        model = onnx.load(path)
        for each in (*model.graph.input, *model.graph.output):
            each.name = rename.get(each.name, each.name)
        for each in model.graph.node:
            each.input[:] = [rename.get(name, name) for name in each.input]
            each.output[:] = [rename.get(name, name) for name in each.output]
        onnx.save(model, path)


def write_echo(path: Path, reach: float) -> None:
    """A square mask around the first point, `reach` px of the 1024 x 1024 input to each side."""
    centres = np.arange(256, dtype=np.float32) * 4 + 2
    constants = {
        "x": centres.reshape(1, 1, 1, 256),
        "y": centres.reshape(1, 1, 256, 1),
        "reach": np.asarray(reach, np.float32),
        "shape": np.asarray([1, 1, 1, 1], np.int64),
        "first": np.asarray(0, np.int64),
        "second": np.asarray(1, np.int64),
        "scores": np.asarray([[0.9]], np.float32),
    }
    nodes = [node("Gather", ["point_coords", "first"], ["point"], axis=1)]  # (1, 2)
    for axis, index in (("x", "first"), ("y", "second")):
        nodes += [
            node("Gather", ["point", index], [f"p{axis}"], axis=1),
            node("Reshape", [f"p{axis}", "shape"], [f"r{axis}"]),
            node("Sub", [axis, f"r{axis}"], [f"d{axis}"]),
            node("Abs", [f"d{axis}"], [f"a{axis}"]),
        ]
    nodes += [
        node("Max", ["ax", "ay"], ["far"]),
        node("Sub", ["reach", "far"], ["masks"]),
        node("Identity", ["scores"], ["iou_predictions"]),
    ]
    outputs = {"masks": ["B", 1, 256, 256], "iou_predictions": ["B", 1]}
    save(path, nodes, {"image_embed": FEATURES["image_embed"], **FEATURES, **PROMPT}, outputs, constants)


def write_detr(
    folder: Path,
    logits: np.ndarray,
    kernels: np.ndarray,
    biases: np.ndarray,
    id2label: Mapping[int, str] | None = None,
    file: str = "onnx/model.onnx",
    reverse: bool = False,
    pixel_mask: Sequence[Any] = ("batch_size", 64, 64),
) -> str:
    """Labels as given; the mask of a query is linear in the colours of the photo, on a grid of 4 x 4 px.

    Args:
        folder: gets the file and config.json.
        logits: (queries, classes + 1).
        kernels: (queries, 3).
        biases: (queries,).
    """
    queries = len(logits)
    inputs = {
        "pixel_values": ["batch_size", 3, "height", "width"],
        "pixel_mask": list(pixel_mask),
    }
    outputs: dict[str, list[Any]] = {
        "logits": ["batch_size", "queries", logits.shape[1]],
        "pred_boxes": ["batch_size", queries, 4],
        "pred_masks": ["batch_size", queries, "h", "w"],
    }
    constants = {
        "given": logits[None].astype(np.float32),
        "boxes": np.zeros((1, queries, 4), np.float32),
        "kernel": kernels.reshape(queries, 3, 1, 1).astype(np.float32),
        "bias": biases.astype(np.float32),
    }
    nodes = [
        node("AveragePool", ["pixel_values"], ["pooled"], kernel_shape=[4, 4], strides=[4, 4], ceil_mode=1),
        node("Conv", ["pooled", "kernel", "bias"], ["pred_masks"]),
        node("Identity", ["given"], ["logits"]),
        node("Identity", ["boxes"], ["pred_boxes"]),
    ]
    order = reversed if reverse else list
    save(
        folder / file,
        nodes,
        dict(order(list(inputs.items()))),
        dict(order(list(outputs.items()))),
        constants,
        {"pixel_mask": INT64},
    )
    if id2label is not None:
        (folder / "config.json").write_text(json.dumps({"id2label": id2label}), encoding="utf-8")
    return str(folder)
