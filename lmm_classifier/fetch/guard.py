"""Where a stranger may send us: a caller that fetches a URL which was not its own passes a `Guard`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from lmm_classifier.errors import FetchError
from lmm_classifier.fetch.addresses import is_public
from lmm_classifier.fetch.url import Url, read_host

PORTS = (80, 443, 8080, 8443)
_PICTURES = ("image/", "application/octet-stream", "binary/octet-stream")


@dataclass(frozen=True, slots=True)
class Guard:
    """What a stranger's URL may lead to: servers of the internet alone, through every name and redirect.

    With one, a fetch that fails says always the same, and why only to the log; nothing of the caller is sent
    on by a redirect; the answer's own word on its type may refuse it but proves nothing.

    Attributes:
        ports: that may be asked.
        domains: that may be asked: "example.org" is itself, ".example.org" what is below it; empty: all.
        forbidden: networks that are forbidden as well, "203.0.112.0/24": what is public and yet one's own.
        types: how the type that an answer says it has may begin; one that says none is taken.
    """

    ports: tuple[int, ...] = PORTS
    domains: tuple[str, ...] = ()
    forbidden: tuple[str, ...] = ()
    types: tuple[str, ...] = _PICTURES

    def __post_init__(self) -> None:
        """Whether every name and network can be read.

        Raises:
            ValueError: one cannot.
        """
        for domain in self.domains:
            try:
                read_host(domain.removeprefix("."))
            except ValueError as error:
                raise ValueError(f"{domain!r} is no domain: {error}") from error
        for network in self.forbidden:
            ip_network(network)

    def check_url(self, url: Url) -> None:
        """Raises a FetchError if the URL itself says that it leads elsewhere."""
        if url.port not in self.ports:
            raise FetchError("unreachable", f"{url.origin}: port {url.port} is not allowed")
        if self.domains and not any(_covers(domain, url.host) for domain in self.domains):
            raise FetchError("unreachable", f"{url.origin}: its domain is not allowed")

    def check_addresses(self, host: str, addresses: Sequence[str]) -> None:
        """Raises a FetchError unless every address that a name stands for may be asked."""
        for text in addresses:
            address = ip_address(text)
            if not is_public(address) or any(address in ip_network(network) for network in self.forbidden):
                raise FetchError("unreachable", f"{host}: {address} is not public")

    def check_type(self, said: str) -> None:
        """Raises a FetchError if an answer says itself that it is no picture."""
        if said and not said.strip().lower().startswith(self.types):
            raise FetchError("unreachable", f"the answer says that it is {said[:100]!r}")


def _covers(domain: str, host: str) -> bool:
    name = read_host(domain.removeprefix("."))
    return host.endswith(f".{name}") if domain.startswith(".") else host == name
