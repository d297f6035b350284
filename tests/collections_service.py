"""A collections service on this machine, as good or as bad as a test wants it; and data for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from local_server import LocalHandler, LocalServer, running

Answer = bytes | Callable[["Handler"], None]


class CollectionsService(LocalServer):
    """Answers by path, query included, and remembers what it was asked: path and headers."""

    def __init__(self, answers: Mapping[str, Answer]) -> None:
        super().__init__(Handler)
        self.answers = dict(answers)
        self.asked: list[tuple[str, dict[str, str]]] = []

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]


class Handler(LocalHandler):
    server: CollectionsService

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))
        answer = self.server.answers.get(self.path)
        if answer is None:
            return self.say(404, b"no such page")
        if callable(answer):
            return answer(self)
        return self.say(200, answer)


@contextmanager
def serving(answers: Mapping[str, Answer]) -> Iterator[CollectionsService]:
    with running(CollectionsService(answers)) as server:
        yield server


def blobs(n: int = 60, d: int = 8, seed: int = 0, gap: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors float32 (n, d) of length 2, and which are of the collection: every third, off by `gap`."""
    random = np.random.default_rng(seed)
    labels = np.arange(n) % 3 == 0
    vectors = random.normal(size=(n, d)) * 0.3
    vectors[:, 0] += np.where(labels, gap, -gap)
    return (2 * vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), labels


def records(vectors: np.ndarray, labels: np.ndarray, first: int = 1) -> list[dict[str, Any]]:
    """As the service has them: labels 0 and 1, photos numbered."""
    rows = zip(vectors.tolist(), labels.tolist(), strict=True)
    return [{"embedding": v, "label": int(y), "photo_id": first + i} for i, (v, y) in enumerate(rows)]


def collection(
    number: Any, name: Any = "a", region: str = "whole_image", kind: str = "clip"
) -> dict[str, Any]:
    """An entry of /collections.json, flat."""
    focus = {"derivative_type_name": region, "embedding_type_name": kind}
    return {"id": number, "name": name, "collection_focus": focus}


def data_path(number: int, kind: str = "clip") -> str:
    return f"/collections/{number}/training_data.json?embedding_type={kind}"


def body(value: Any) -> bytes:
    return json.dumps(value).encode()
