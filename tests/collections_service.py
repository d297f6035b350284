"""A collections service on this machine, as good or as bad as a test wants it; and data for it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

Answer = bytes | Callable[["Handler"], None]


class CollectionsService(ThreadingHTTPServer):
    """Answers by path, query included, and remembers what it was asked: path and headers."""

    daemon_threads = True

    def __init__(self, answers: Mapping[str, Answer]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = dict(answers)
        self.asked: list[tuple[str, dict[str, str]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The client may hang up whenever it has seen enough."""


class Handler(BaseHTTPRequestHandler):
    server: CollectionsService

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))
        answer = self.server.answers.get(self.path)
        if answer is None:
            return self.say(404, b"no such page")
        if callable(answer):
            return answer(self)
        return self.say(200, answer)

    def say(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass


@contextmanager
def serving(answers: Mapping[str, Answer]) -> Iterator[CollectionsService]:
    server = CollectionsService(answers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


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
