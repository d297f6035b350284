"""The service on this machine, with models that can be followed by hand, and a client of its own."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from fastapi import FastAPI
from PIL import Image

from lmm_classifier import HybridClassifier, PipelineConfig
from lmm_classifier.api.build_index import build_index
from lmm_classifier.config.service import ServiceSettings
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.service.app import create_app
from lmm_classifier.service.server import bound
from synthetic import write_corpus

REAL_CONNECT = socket.socket.connect  # before a fixture replaces it
FAKE = ModelSpec("fake")
FAKES: dict[str, Any] = {
    name: {option: {"family": "fake"}}
    for name, option in (
        ("embed_clip_vit_b_32", "encoder"),
        ("embed_dino_v2", "encoder"),
        ("embed_dino_v3", "encoder"),
        ("embed_siglip", "encoder"),
        ("describe_image", "model"),
        ("label_image", "model"),
        ("segment", "model"),
        ("segment_panoptic", "model"),
    )
}


def make_index(folder: Path) -> Path:
    build_index(write_corpus(folder / "corpus"), folder / "index", encoder=FAKE)
    return folder / "index"


def classifier(index: Path, **service: Any) -> HybridClassifier:
    """Every operation with a fake; what is brighter than mid-grey is a person, and a face."""
    operations = FAKES | service.pop("operations", {})
    service = {"persons": FAKE, "faces": ModelSpec("fake", "face"), "operations": operations} | service
    config = PipelineConfig.model_validate(
        {
            "encoder": FAKE,
            "retrieval": {"index_path": index, "confidence_threshold": 0.9, "open_set_threshold": 0.8},
            "rerank": {"family": "fake", "model_name": ""},
            "service": service,
        }
    )
    return HybridClassifier(config)


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Served:
    """A service that listens; in this process, also what answers, and what runs it."""

    port: int
    classifier: HybridClassifier | None = None
    server: uvicorn.Server | None = None
    thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def stop(self) -> None:
        assert self.server is not None
        assert self.thread is not None
        self.server.should_exit = True
        self.thread.join(15)
        assert not self.thread.is_alive(), "the service did not stop"

    def connect(self, timeout: float = 30) -> socket.socket:
        connection = socket.socket()
        connection.settimeout(timeout)
        REAL_CONNECT(connection, ("127.0.0.1", self.port))
        return connection

    def ask(self, method: str, path: str, headers: Mapping[str, str] | None = None, **content: Any) -> Reply:
        """One request; `content` is what httpx2 puts into a body: json, data, files, content."""
        made = httpx2.Request(method, f"http://127.0.0.1:{self.port}/", headers=headers, **content)
        sent = dict(made.headers) | {"host": (headers or {}).get("host", f"127.0.0.1:{self.port}")}
        with closing(http.client.HTTPConnection("127.0.0.1", self.port)) as client:
            client.sock = self.connect()
            client.request(method, path, made.read(), sent)
            answer = client.getresponse()
            reply = Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
            assert_tells_nothing(reply)
            return reply

    def upload(self, photo: bytes, *tasks: Any, name: str = "photo.png", **options: Any) -> Reply:
        """`tasks` are names of operations, or (name, params); the operation_id is the place in the list."""
        return self.ask(
            "POST",
            "/analyze_image_upload/",
            files={"image_file": (name, photo)},
            data={"tasks_json": json.dumps({"tasks": as_tasks(*tasks)})},
            **options,
        )

    def result(self, photo: bytes, operation: str, /, **params: Any) -> dict[str, Any]:
        """The result of one task."""
        reply = self.upload(photo, (operation, params))
        assert reply.status == 200, reply.body
        found: dict[str, Any] = reply.json["results"]["0"]
        return found


def as_tasks(*tasks: Any) -> list[dict[str, Any]]:
    pairs = [(task, {}) if isinstance(task, str) else task for task in tasks]
    return [{"operation_id": str(i), "type": n, "params": p} for i, (n, p) in enumerate(pairs)]


PICTURES = re.compile(rb"[A-Za-z0-9+/=]{100,}")  # as base64
LEAKS = re.compile(
    rb"0x[0-9a-f]{4,}|Traceback|File \\?\"|(?<![\w<.:/])/(?:home|tmp|usr|opt|root|work|etc|proc)/"
)


def assert_tells_nothing(reply: Reply) -> None:
    """No refusal, and no result of a task that failed, holds an address of memory, a path or a traceback."""
    if reply.status >= 400 or b'"error_code":"' in reply.body:
        said = PICTURES.sub(b"", reply.body)
        assert not (found := LEAKS.search(said)), found
        assert reply.status < 500 or reply.status == 503, reply.body


@contextmanager
def child(folder: Path, settings: HybridClassifier, **environment: str) -> Iterator[tuple[Served, Child]]:
    """The command itself, as a user starts it; it must end when it is told to."""
    yaml = folder / "service.yaml"
    settings.config.to_yaml(yaml)
    command = ("serve", "--config", yaml, "--port", "0")
    with started(folder / "service.log", *command, **environment) as (served, process):
        while served.ask("GET", "/ready").status != 200:
            time.sleep(0.1)
        yield served, process


@contextmanager
def started(log: Path, *command: str | Path, **environment: str) -> Iterator[tuple[Served, Child]]:
    """A command that prints the address at which it listens."""
    with log.open("wb") as said_wrong:
        process = subprocess.Popen(
            [sys.executable, "-m", "lmm_classifier", *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=said_wrong,
            env={**os.environ, **environment},
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # ignored in the background
        )
    try:
        assert process.stdout is not None
        said = process.stdout.readline().decode()
        assert said.startswith("http://127.0.0.1:"), log.read_text("utf-8")
        yield Served(int(said.strip().rstrip("/").rpartition(":")[2])), Child(process, log)
    finally:
        process.kill()
        process.communicate()


@dataclass(frozen=True)
class Child:
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def resident(self) -> int:
        """MiB."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text("ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") // 2**20

    @property
    def peak(self) -> int:
        """MiB, the most it ever was since `forget_peak`."""
        status = Path(f"/proc/{self.process.pid}/status").read_text("utf-8")
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) // 1024

    def forget_peak(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5", "ascii")

    def stopped(self, sent: signal.Signals = signal.SIGTERM) -> int:
        """Tells it to stop, and waits for its exit code; so long only if it hangs."""
        self.process.send_signal(sent)
        return self.process.wait(timeout=60)

    def records(self) -> list[dict[str, Any]]:
        """Its log."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@contextmanager
def serving(served: HybridClassifier) -> Iterator[Served]:
    with listening(create_app(served), served.config.service) as service:
        yield replace(service, classifier=served)


@contextmanager
def listening(app: FastAPI, settings: ServiceSettings) -> Iterator[Served]:
    """An app at a free port of this machine, in this process."""
    server, at = bound(app, settings, "127.0.0.1", 0)
    thread = threading.Thread(target=server.run, args=([at],), daemon=True)
    service = Served(at.getsockname()[1], None, server, thread)
    thread.start()
    try:
        yield service
    finally:
        service.stop()


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
