"""Which addresses of the internet a stranger may send us to.

`ipaddress.is_global` cannot be the rule: it changes with the version of Python, and holds of NAT64, of
multicast and of the wire server of a cloud.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

# IANA's special-purpose registries (RFC 6890) with what else no server of the internet has.
FORBIDDEN_4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network; 0.0.0.0 reaches this machine
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared by a provider's customers; a cloud's metadata
        "127.0.0.0/8",  # this machine
        "168.63.129.16/32",  # Azure's wire server, among public addresses
        "169.254.0.0/16",  # link-local; clouds' metadata
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)
_GLOBAL_6 = IPv6Network("2000::/3")  # the unicast addresses given out so far: nearly all that hold an IPv4
#                                     one are elsewhere (::/96, ::ffff:0:0/96, ::ffff:0:0:0/96, 64:ff9b::/96)
FORBIDDEN_6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments, with Teredo, benchmarks, ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: an IPv4 address
        "3fff::/20",  # documentation
    )
)
_ISATAP = (0x00005EFE, 0x02005EFE)  # RFC 5214: before an IPv4 address, in whatever network


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether it can be the address of a server of the internet, by the table and by nothing else."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in FORBIDDEN_4)
    if address.scope_id is not None or address not in _GLOBAL_6:
        return False
    if any(address in network for network in FORBIDDEN_6):
        return False
    low = int(address) & 0xFFFF_FFFF_FFFF_FFFF
    return low >> 32 not in _ISATAP or is_public(IPv4Address(low & 0xFFFF_FFFF))
