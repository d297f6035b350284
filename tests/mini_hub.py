"""A hub on this machine: what the hub's library and transformers ask for when they download a checkpoint."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from hub_cache import git_id

COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
LARGE = (".safetensors", ".onnx")
"""Files that are named by their SHA-256; others by git's digest."""
Repositories = Mapping[str, Mapping[str, bytes]]
"""owner/name -> file name -> content."""


class MiniHub(ThreadingHTTPServer):
    """Serves repositories, and remembers what it was asked: method, path and headers.

    Attributes:
        asked: the requests so far.
        cut: bytes after which the first answer with a file breaks off; 0: none does.
        stalls: whether it stops there instead, until it is released.
        stalled, released: events of such an answer.
    """

    daemon_threads = True

    def __init__(self, repositories: Repositories, cut: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories, self.cut = repositories, cut
        self.stalls = False
        self.stalled, self.released = threading.Event(), threading.Event()
        self.asked: list[tuple[str, str, dict[str, str]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving(repositories: Repositories, cut: int = 0) -> Iterator[MiniHub]:
    """A hub while the block runs."""
    hub = MiniHub(repositories, cut)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    yield hub
    hub.shutdown()
    hub.server_close()
    thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: MiniHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *arguments: Any) -> None:
        pass

    def _answer(self) -> None:
        hub = self.server
        hub.asked.append((self.command, self.path, dict(self.headers)))
        path = self.path.partition("?")[0]
        for repo, files in hub.repositories.items():
            if re.fullmatch(rf"/api/models/{re.escape(repo)}(?:/revision/(?:{COMMIT}|main))?", path):
                siblings = [{"rfilename": name} for name in files]
                described = {"id": repo, "sha": COMMIT, "siblings": siblings, "private": False}
                return self._send(json.dumps(described).encode())
            if found := re.fullmatch(rf"/api/models/{re.escape(repo)}/tree/(?:{COMMIT}|main)(/.*)?", path):
                rows = _listing(files, (found[1] or "").strip("/"))
                return self._send(json.dumps(rows).encode()) if rows else self._refuse("EntryNotFound")
            if found := re.fullmatch(rf"/{re.escape(repo)}/resolve/(?:{COMMIT}|main)/(.+)", path):
                name = found[1]
                if name not in files:
                    return self._refuse("EntryNotFound")
                etag = f'"{_digest(name, files[name])}"'
                return self._send(files[name], {"ETag": etag, "X-Repo-Commit": COMMIT})
        return self._refuse("RepoNotFound")

    def _refuse(self, code: str) -> None:
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.send_header("X-Error-Code", code)
        if code == "EntryNotFound":
            self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()

    def _send(self, content: bytes, headers: Mapping[str, str] | None = None) -> None:
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        body = content[start:]
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(len(body)))
        if "Range" in self.headers:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut, large = self.server.cut, len(body) > self.server.cut > 0
        if headers and large:
            self.server.cut = 0
            self.wfile.write(body[:cut])
            if self.server.stalls:
                self.wfile.flush()
                self.server.stalled.set()
                self.server.released.wait(60)
            self.close_connection = True
            return
        self.wfile.write(body)


def _listing(files: Mapping[str, bytes], folder: str) -> list[dict[str, Any]]:
    return [
        {"type": "file", "path": name, "size": len(content), "oid": git_id(content)}
        for name, content in files.items()
        if not folder or name.startswith(f"{folder}/")
    ]


@cache
def _digest(name: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if name.endswith(LARGE) else git_id(content)
