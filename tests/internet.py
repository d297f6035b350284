"""An internet on this machine: names mean what a test says, public addresses lead to one server of pictures.

The client is the real one down to its sockets. Every connection that is tried is written down by where it
goes; one to a public address reaches the server, one to anywhere else is refused.
"""

from __future__ import annotations

import errno
import io
import ipaddress
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pytest
from PIL import Image

from local_server import LocalHandler, LocalServer, running
from registries import reachable

REAL_CONNECT = socket.socket.connect  # before a fixture replaces it
Page = Callable[["Pictures"], None]


@dataclass
class Asked:
    """One request as it came."""

    path: str
    host: str
    headers: dict[str, str]


class Pictures(LocalHandler):
    """A picture everywhere, /r/302?to=URL goes there, and /r/chain?n=2&to=URL in that many steps more."""

    server: PictureServer

    def do_GET(self) -> None:
        self.server.asked.append(Asked(self.path, self.headers.get("Host", ""), dict(self.headers)))
        path, _, query = self.path.partition("?")
        if page := self.server.pages.get(path):
            return page(self)
        if not path.startswith("/r/"):
            return self.say(200, PNG, Content_Type="image/png")
        before, _, goal = query.partition("to=")
        if path == "/r/chain" and (steps := int(before.removeprefix("n=").removesuffix("&"))):
            return self.say(302, b"", Location=f"/r/chain?n={steps - 1}&to={goal}")
        return self.say(302 if path == "/r/chain" else int(path.removeprefix("/r/")), b"", Location=goal)


class PictureServer(LocalServer):
    def __init__(self, pages: Mapping[str, Page], handler: type = Pictures) -> None:
        super().__init__(handler)
        self.pages = dict(pages)
        self.asked: list[Asked] = []


@dataclass
class Internet:
    """Who stands for what, and who was asked.

    Attributes:
        names: name -> the answers to its look-ups, one list for each; the last one stays.
        server: behind every public address and all ports but those of TLS.
        secure: behind the ports of TLS, if there is one.
        dead: public addresses where nobody answers: "refused" or "filtered".
        answers_instead: address -> another one that answers there, as after a change of the route.
        connects: the addresses that were connected to.
        looked_up: the names that were.
    """

    names: dict[str, list[list[str]]]
    server: PictureServer
    secure: PictureServer | None = None
    dead: dict[str, str] = field(default_factory=dict)
    answers_instead: dict[str, str] = field(default_factory=dict)
    connects: list[tuple[str, int]] = field(default_factory=list)
    looked_up: list[str] = field(default_factory=list)

    @property
    def asked(self) -> list[Asked]:
        return self.server.asked

    @property
    def forbidden_connects(self) -> list[tuple[str, int]]:
        return [(address, port) for address, port in self.connects if not reachable(address)]

    def forget(self) -> None:
        self.connects.clear()
        self.looked_up.clear()
        self.server.asked.clear()

    def name_service(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The names alone; the sockets stay what they are."""
        real_look_up = socket.getaddrinfo

        def look_up(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
            name = host.decode() if isinstance(host, bytes) else str(host)
            self.looked_up.append(name)
            answers = self.names.get(name.lower().removesuffix("."))
            if answers is None:  # what libc takes for a number is one, in whatever spelling
                options["flags"] = socket.AI_NUMERICHOST
                return real_look_up(host, port, *arguments, **options)
            now = answers.pop(0) if len(answers) > 1 else answers[0]
            if not now:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            return [entry for one in now for entry in real_look_up(one, port, *arguments, **options)]

        monkeypatch.setattr(socket, "getaddrinfo", look_up)

    def plug_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.name_service(monkeypatch)
        real_peer = socket.socket.getpeername
        peers: WeakKeyDictionary[socket.socket, str] = WeakKeyDictionary()

        def connect(connection: socket.socket, address: tuple[Any, ...]) -> None:
            if connection.type & socket.SOCK_DGRAM:
                return REAL_CONNECT(connection, address)
            host, port = str(address[0]), int(address[1])
            self.connects.append((host, port))
            if not reachable(host) or self.dead.get(host) == "refused":
                raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
            if self.dead.get(host) == "filtered":
                raise TimeoutError("timed out")
            server = self.secure if self.secure and port in (443, 8443) else self.server
            local = "::ffff:127.0.0.1" if connection.family == socket.AF_INET6 else "127.0.0.1"
            REAL_CONNECT(connection, (local, server.server_port))
            peers[connection] = self.answers_instead.get(host, host)
            return None

        def peer(connection: socket.socket) -> Any:
            real = real_peer(connection)
            return (peers[connection], *real[1:]) if connection in peers else real

        monkeypatch.setattr(socket.socket, "connect", connect)
        monkeypatch.setattr(socket.socket, "getpeername", peer)


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("L", (4, 4), 100).save(file, "PNG")
    return file.getvalue()


PNG = picture()


@contextmanager
def internet(
    monkeypatch: pytest.MonkeyPatch,
    names: Mapping[str, list[list[str]] | str],
    pages: Mapping[str, Page] | None = None,
    certificate: Path | None = None,
    handler: type = Pictures,
) -> Iterator[Internet]:
    """An internet with these names: a text is one address, or several with blanks between them."""
    table = {name: [one.split()] if isinstance(one, str) else one for name, one in names.items()}
    with ExitStack() as stack:
        server = stack.enter_context(running(PictureServer(pages or {}, handler)))
        secure = None
        if certificate:
            secure = PictureServer(pages or {}, handler)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            secure.socket = context.wrap_socket(
                secure.socket, server_side=True, do_handshake_on_connect=False
            )
            secure.asked = server.asked
            stack.enter_context(running(secure))
        net = Internet(table, server, secure)
        net.plug_in(monkeypatch)
        yield net


def certificate_for(names: list[str], folder: Path) -> Path:
    """A key and a certificate that it signs itself, in one file."""
    openssl = shutil.which("openssl")
    if not openssl:
        pytest.skip("there is no openssl to make a certificate with")
    key, certificate, both = (folder / name for name in ("key.pem", "certificate.pem", "both.pem"))
    alternatives = ",".join(f"{'IP' if _is_address(name) else 'DNS'}:{name}" for name in names)
    named = ["-subj", f"/CN={names[0]}", "-addext", f"subjectAltName={alternatives}", "-days", "2"]
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run(
        [openssl, "req", "-x509", *kind, *named, "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )
    both.write_bytes(key.read_bytes() + certificate.read_bytes())
    return both


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
