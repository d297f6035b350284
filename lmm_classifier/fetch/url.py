"""The one reading of a URL: what it does not understand in the one strict way is refused, never repaired.

The parts that are checked are the parts that are used: nothing reads the text a second time.
"""

from __future__ import annotations

import re
import string
import unicodedata
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from urllib.parse import quote, urljoin

import idna

_LONGEST_URL = 2048
_PARTS = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[^]]*\]|[^][:/?#]*)(?::(?P<port>[0-9]{0,5}))?"
    r"(?:(?P<target>[/?][^#]*)(?:#.*)?)?",  # no fragment right behind the host: others read it as a part
    re.ASCII | re.IGNORECASE | re.DOTALL,
)
_LABEL = "[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*", re.ASCII)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)  # at the end of a host: inet_aton may read an address


@dataclass(frozen=True, slots=True)
class Url:
    """Where something is to be fetched.

    Attributes:
        scheme: http or https.
        host: a name in lower case, or an address as `ipaddress` writes it; without brackets.
        port: 1 to 65535.
        target: path and query, as they are sent.
    """

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """Host and port as the Host header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _default_port(self.scheme) else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """Without path and query, which may hold what is not for everyone."""
        return f"{self.scheme}://{self.authority}"

    def __str__(self) -> str:
        return self.origin + self.target

    def joined(self, location: str, *, international: bool = False) -> Url:
        """What a redirect from here means.

        Raises:
            ValueError: that is no URL to fetch.
        """
        _check_characters(location, international)
        return read_url(urljoin(str(self), location), international=international)


def read_url(text: str, *, international: bool = False) -> Url:
    """The parts of a URL that everyone reads alike.

    Args:
        text: the URL.
        international: whether there may be other letters than ASCII, as people write them.

    Raises:
        ValueError: it is none that is fetched; the message holds nothing of its path.
    """
    _check_characters(text, international)
    parts = _PARTS.fullmatch(text)
    if parts is None or "@" in parts["host"] or "%" in parts["host"]:
        raise ValueError(
            "it must start with http:// or https:// and name a host, without user name or escapes, "
            "and maybe a port"
        )
    scheme = parts["scheme"].lower()
    port = int(parts["port"] or _default_port(scheme))
    if not 0 < port < 2**16:
        raise ValueError("it has no valid port")
    target = parts["target"] or "/"
    target = target if target.startswith("/") else f"/{target}"
    return Url(scheme, read_host(parts["host"]), port, quote(target, safe=string.punctuation))


def read_host(text: str) -> str:
    """A host in its one spelling.

    Either four decimal numbers, an IPv6 address in brackets, or a name. Whatever else libc would take for an
    address is refused: 127.1, 0x7f000001, 017700000001.

    Raises:
        ValueError: it is none.
    """
    if text.startswith("["):
        if "%" in text:
            raise ValueError("its address must not have a zone")
        return str(IPv6Address(text[1:].removesuffix("]")))
    if not text.isascii():
        text = idna.encode(unicodedata.normalize("NFKC", text), uts46=True).decode()
    name = text.lower().removesuffix(".")
    if _NUMBER.fullmatch(name.rpartition(".")[2]):
        return str(IPv4Address(name))
    if not _NAME.fullmatch(name):
        raise ValueError("it must name a host")
    return name


def _check_characters(text: str, international: bool) -> None:
    if (
        len(text) > _LONGEST_URL
        or not (international or text.isascii())
        or any(character <= " " or character in "\\\x7f" for character in text)
    ):
        raise ValueError(
            f"it must be at most {_LONGEST_URL} printable {'' if international else 'ASCII '}characters "
            "without blanks or backslashes"
        )


def _default_port(scheme: str) -> int:
    return 443 if scheme == "https" else 80
