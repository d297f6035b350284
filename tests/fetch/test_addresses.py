"""Which addresses are public: against the registries, typed a second time in `registries`."""

from __future__ import annotations

import ipaddress
import random
import socket
from ipaddress import ip_address

import pytest

from lmm_classifier.fetch.addresses import FORBIDDEN_4, FORBIDDEN_6, is_public
from registries import edges, reachable

RANDOM = 100_000
PRIVATE_4 = ("127.0.0.1", "10.0.0.5", "169.254.169.254", "192.168.1.1", "100.100.100.200", "0.0.0.0")  # noqa: S104


def disagreements(addresses: list[str]) -> list[str]:
    return [one for one in addresses if is_public(ip_address(one)) != reachable(one)]


def test_edges_agree_with_the_registries() -> None:
    assert len(edges()) > 250
    assert disagreements(edges()) == []


def test_random_addresses_agree_with_the_registries() -> None:
    """Half of them near a block of a registry, where a wrong table would be wrong."""
    draw = random.Random(0)  # noqa: S311
    four = [str(ipaddress.IPv4Address(draw.getrandbits(32))) for _ in range(RANDOM // 4)]
    six = [str(ipaddress.IPv6Address(draw.getrandbits(128))) for _ in range(RANDOM // 8)]
    global_six = [str(ipaddress.IPv6Address((1 << 125) | draw.getrandbits(125))) for _ in range(RANDOM // 8)]
    near = []
    anchors = [ip_address(one) for one in edges()]
    while len(near) < RANDOM // 2:
        anchor = draw.choice(anchors)
        value = int(anchor) ^ draw.getrandbits(draw.randrange(1, anchor.max_prefixlen))
        near.append(str(type(anchor)(value)))
    addresses = four + six + global_six + near
    assert len(addresses) == RANDOM
    assert disagreements(addresses) == []
    public = sum(is_public(ip_address(one)) for one in addresses)
    assert 0.2 * RANDOM < public < 0.8 * RANDOM  # both answers are common


@pytest.mark.parametrize("inner", PRIVATE_4)
@pytest.mark.parametrize(
    "form",
    [
        "::{dotted}",
        "::ffff:{dotted}",
        "::ffff:0:{dotted}",
        "64:ff9b::{dotted}",
        "64:ff9b:1::{dotted}",
        "2002:{hexed}::1",
        "2001:0:{hexed}::1",
        "2001:0:4136:e378:8000:63bf:{flipped}",
        "fe80::5efe:{dotted}",
        "2606:4700::5efe:{dotted}",
        "2606:4700::200:5efe:{dotted}",
    ],
)
def test_every_form_that_holds_a_private_address_is_private(form: str, inner: str) -> None:
    value = int.from_bytes(socket.inet_aton(inner), "big")
    flipped = value ^ 0xFFFFFFFF
    text = form.format(
        dotted=inner,
        hexed=f"{value >> 16:x}:{value & 65535:x}",
        flipped=f"{flipped >> 16:x}:{flipped & 65535:x}",
    )
    assert not is_public(ip_address(text))


@pytest.mark.parametrize("form", ["::ffff:8.8.8.8", "::8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::"])
def test_a_public_address_in_another_one_is_not_taken_either(form: str) -> None:
    assert not is_public(ip_address(form))


def test_zones_are_private() -> None:
    assert is_public(ip_address("2606:4700:4700::1111"))
    assert not is_public(ip_address("2606:4700:4700::1111%eth0"))


def test_the_rule_is_the_same_in_every_version_of_python() -> None:
    """It asks `ipaddress` for arithmetic alone: not for what it thinks of an address."""
    assert (len(FORBIDDEN_4), len(FORBIDDEN_6)) == (16, 4)
    assert all(not is_public(network[0]) and not is_public(network[-1]) for network in FORBIDDEN_4)
