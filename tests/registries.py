"""IANA's special-purpose address registries, typed from them and not from the package: a second opinion.

A row is a block as the registry names it and whether it is globally reachable; the longest block wins, as
the registries say. Where the house is stricter, the row stands under STRICTER with its reason.
"""

from __future__ import annotations

import ipaddress
import socket

IPV4_SPECIAL = """
0.0.0.0/8           no   "This network"                            RFC 791
0.0.0.0/32          no   "This host on this network"               RFC 1122
10.0.0.0/8          no   Private-Use                               RFC 1918
100.64.0.0/10       no   Shared Address Space                      RFC 6598
127.0.0.0/8         no   Loopback                                  RFC 1122
169.254.0.0/16      no   Link Local                                RFC 3927
172.16.0.0/12       no   Private-Use                               RFC 1918
192.0.0.0/24        no   IETF Protocol Assignments                 RFC 6890
192.0.0.0/29        no   IPv4 Service Continuity Prefix            RFC 7335
192.0.0.8/32        no   IPv4 dummy address                        RFC 7600
192.0.0.9/32        yes  Port Control Protocol Anycast             RFC 7723
192.0.0.10/32       yes  TURN Anycast                              RFC 8155
192.0.0.170/32      no   NAT64/DNS64 Discovery                     RFC 7050
192.0.0.171/32      no   NAT64/DNS64 Discovery                     RFC 7050
192.0.2.0/24        no   Documentation (TEST-NET-1)                RFC 5737
192.31.196.0/24     yes  AS112-v4                                  RFC 7535
192.52.193.0/24     yes  AMT                                       RFC 7450
192.88.99.0/24      no   Deprecated (6to4 Relay Anycast)           RFC 7526
192.168.0.0/16      no   Private-Use                               RFC 1918
192.175.48.0/24     yes  Direct Delegation AS112 Service           RFC 7534
198.18.0.0/15       no   Benchmarking                              RFC 2544
198.51.100.0/24     no   Documentation (TEST-NET-2)                RFC 5737
203.0.113.0/24      no   Documentation (TEST-NET-3)                RFC 5737
224.0.0.0/4         no   Multicast (IPv4 address space registry)   RFC 5771
240.0.0.0/4         no   Reserved                                  RFC 1112
255.255.255.255/32  no   Limited Broadcast                         RFC 8190
"""
IPV6_SPECIAL = """
::/0                no   Reserved by IETF, unless below            RFC 4291
2000::/3            yes  Global Unicast (IPv6 address space)       RFC 4291
::1/128             no   Loopback Address                          RFC 4291
::/128              no   Unspecified Address                       RFC 4291
::ffff:0:0/96       no   IPv4-mapped Address                       RFC 4291
64:ff9b::/96        yes  IPv4-IPv6 Translat.                       RFC 6052
64:ff9b:1::/48      no   IPv4-IPv6 Translat.                       RFC 8215
100::/64            no   Discard-Only Address Block                RFC 6666
100:0:0:1::/64      no   Dummy IPv6 Prefix                         RFC 9780
2001::/23           no   IETF Protocol Assignments                 RFC 2928
2001::/32           no   TEREDO                                    RFC 4380
2001:1::1/128       yes  Port Control Protocol Anycast             RFC 7723
2001:1::2/128       yes  TURN Anycast                              RFC 8155
2001:1::3/128       yes  DNS-SD SRP Anycast                        RFC 9665
2001:2::/48         no   Benchmarking                              RFC 5180
2001:3::/32         yes  AMT                                       RFC 7450
2001:4:112::/48     yes  AS112-v6                                  RFC 7535
2001:10::/28        no   Deprecated (ORCHID)                       RFC 4843
2001:20::/28        yes  ORCHIDv2                                  RFC 7343
2001:30::/28        yes  Drone Remote ID                           RFC 9374
2001:db8::/32       no   Documentation                             RFC 3849
2002::/16           no   6to4                                      RFC 3056
2620:4f:8000::/48   yes  Direct Delegation AS112 Service           RFC 7534
3fff::/20           no   Documentation                             RFC 9637
5f00::/16           no   Segment Routing (SRv6) SIDs               RFC 9602
fc00::/7            no   Unique-Local                              RFC 4193
fe80::/10           no   Link-Local Unicast                        RFC 4291
fec0::/10           no   Deprecated (site-local)                   RFC 3879
ff00::/8            no   Multicast                                 RFC 4291
"""
STRICTER = """
168.63.129.16/32    no   Azure's wire server
192.0.0.9/32        no   anycast of one's provider, no server of pictures
192.0.0.10/32       no   the same
64:ff9b::/96        no   an IPv4 address, which NAT64 reaches
2001:1::1/128       no   anycast of one's provider
2001:1::2/128       no   the same
2001:1::3/128       no   the same
2001:3::/32         no   multicast tunnels
2001:4:112::/48     no   a sink for questions
2001:20::/28        no   no addresses, but hashes
2001:30::/28        no   the same
"""


def _rows(text: str) -> dict[tuple[int, int], bool]:
    """(first address, length of the prefix) -> reachable, in the arithmetic of whole numbers."""
    rows = {}
    for line in text.strip().splitlines():
        block, reachable, *_ = line.split()
        start, _, length = block.partition("/")
        rows[number(start), int(length)] = reachable == "yes"
    return rows


def number(address: str) -> int:
    return int.from_bytes(
        socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address), "big"
    )


_STRICTER = STRICTER.strip().splitlines()
_TABLES = {
    32: _rows(IPV4_SPECIAL) | _rows("\n".join(line for line in _STRICTER if ":" not in line.split()[0])),
    128: _rows(IPV6_SPECIAL) | _rows("\n".join(line for line in _STRICTER if ":" in line.split()[0])),
}


def reachable(address: str) -> bool:
    """Whether the registries have it reachable for everyone, and the house does not disagree."""
    bits = 128 if ":" in address else 32
    value = number(address)
    table = _TABLES[bits]
    for length in range(bits, -1, -1):  # the longest block first
        start = value >> (bits - length) << (bits - length)
        if (start, length) in table:
            if not table[start, length]:
                return False
            break
    if bits == 128 and (value >> 32) & 0xFDFFFFFF == 0x00005EFE:  # ISATAP: an IPv4 address follows
        return reachable(str(ipaddress.IPv4Address(value & 0xFFFFFFFF)))
    return True


def edges() -> list[str]:
    """The first and the last address of every block, and their neighbours outside."""
    found = []
    for bits, table in _TABLES.items():
        make = ipaddress.IPv4Address if bits == 32 else ipaddress.IPv6Address
        for start, length in table:
            end = start + 2 ** (bits - length) - 1
            near = {start - 1, start, start + 1, end - 1, end, end + 1}
            found += [str(make(value)) for value in sorted(near) if 0 <= value < 2**bits]
    return found
