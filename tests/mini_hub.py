"""A hub on this machine: what the hub's own library asks for when it downloads a checkpoint, and no more."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from hub_cache import git_id

COMMIT = "89abcdef0123456789abcdef0123456789abcdef"


class MiniHub(ThreadingHTTPServer):
    """Serves one repository, and remembers what it was asked: method, path and headers.

    Attributes:
        asked: the requests so far.
        cut: bytes after which the first answer with a file breaks off; 0: none does.
    """

    daemon_threads = True

    def __init__(self, repo: str, files: Mapping[str, bytes], cut: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repo, self.files, self.cut = repo, files, cut
        self.asked: list[tuple[str, str, dict[str, str]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving(repo: str, files: Mapping[str, bytes], cut: int = 0) -> Iterator[MiniHub]:
    """A hub with one repository, whose files are named by git's digest, or by SHA-256 if safetensors."""
    hub = MiniHub(repo, files, cut)
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
        if path.startswith(f"/api/models/{hub.repo}/"):
            return self._send(self._listing(path))
        name = path.partition(f"/{hub.repo}/resolve/{COMMIT}/")[2]
        if name not in hub.files:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.send_header("X-Error-Code", "RepoNotFound")
            return self.end_headers()
        content = hub.files[name]
        large = name.endswith(".safetensors")
        digest = hashlib.sha256(content).hexdigest() if large else git_id(content)
        return self._send(content, {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT})

    def _listing(self, path: str) -> bytes:
        hub = self.server
        if "/tree/" in path:
            rows = [
                {"type": "file", "path": name, "size": len(content), "oid": git_id(content)}
                for name, content in hub.files.items()
            ]
            return json.dumps(rows).encode()
        siblings = [{"rfilename": name} for name in hub.files]
        return json.dumps({"id": hub.repo, "sha": COMMIT, "siblings": siblings, "private": False}).encode()

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
            self.close_connection = True
            return
        self.wfile.write(body)
