"""Where a stranger may send us: every row by the connections that were seen, not by what was raised.

The material of LMM_CLASSIFIER_REALDATA is read where it is; the rows here are others and need none.
"""

from __future__ import annotations

import errno
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from internet import PNG, Internet, certificate_for, internet
from lmm_classifier.errors import FetchError
from lmm_classifier.fetch import FetchLimits, Guard, fetch
from lmm_classifier.fetch.connection import _check_foreign
from strangers import ALLOWED, NAMES, QUICK, REFUSED, SAME, fresh, refused, table_of_the_house

pytestmark = pytest.mark.usefixtures("no_network")


@pytest.mark.parametrize("url", ALLOWED)
def test_a_good_url_is_fetched(url: str, net: Internet) -> None:
    assert fetch(url, guard=Guard()) == PNG
    assert net.connects
    assert net.forbidden_connects == []


@pytest.mark.parametrize("url", REFUSED)
def test_a_bad_url_leads_nowhere(url: str, net: Internet) -> None:
    refused(url)
    assert net.forbidden_connects == []
    if "/r/" not in url:
        assert net.connects == []
    assert all(address in ("93.184.215.14", "151.101.65.69") for address, _ in net.connects)


def test_there_are_more_rows_than_in_the_table_of_the_house() -> None:
    assert len({*REFUSED}) >= 90
    assert len({*ALLOWED}) >= 21


@pytest.mark.parametrize("unguarded", ["http://lo.test/", "http://127.0.0.1/", "http://mixed-last.test/"])
def test_without_a_guard_these_rows_would_connect(unguarded: str, net: Internet) -> None:
    """So it is the guard that keeps them from it, and the test that sees it."""
    with suppress(FetchError):
        fetch(unguarded, limits=QUICK)
    assert net.forbidden_connects


def test_every_row_of_the_table_of_the_house_is_judged_as_it_says(
    realdata: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, rows = table_of_the_house(realdata)
    wrong = []
    for url, verdict in rows:
        with (
            monkeypatch.context() as patched,
            internet(patched, fresh(names)) as net,
        ):
            said = outcome(url)
        assert said in (PNG, SAME)
        over_tls = any(port == 443 for _, port in net.connects)  # no certificate: judged by its connection
        if net.forbidden_connects or (said == PNG or over_tls) != (verdict == "allow"):
            wrong.append((url, verdict, said, net.connects))
    assert wrong == []


def outcome(url: str) -> bytes | str:
    try:
        return fetch(url, guard=Guard(), limits=QUICK)
    except FetchError as error:
        return str(error)


class TestConnecting:
    def test_is_to_the_address_that_was_checked(self, net: Internet) -> None:
        assert fetch("http://rebind.test/a.png", guard=Guard()) == PNG
        assert net.looked_up.count("rebind.test") == 1
        assert net.connects == [("93.184.215.14", 80)]
        assert net.asked[0].host == "rebind.test"

    def test_is_tried_with_the_next_address_of_a_name(self, net: Internet) -> None:
        net.dead["93.184.215.14"] = "refused"
        assert fetch("http://two.test/a.png", guard=Guard()) == PNG
        assert net.connects == [("93.184.215.14", 80), ("151.101.65.69", 80)]

    @pytest.mark.parametrize("other", ["127.0.0.1", "151.101.65.69", "::1"])
    def test_ends_where_another_address_answers(self, other: str, net: Internet) -> None:
        """Before a byte is sent."""
        net.answers_instead["93.184.215.14"] = other
        refused("http://open.test/a.png")
        assert net.asked == []

    def test_to_an_address_of_this_machine_is_refused(self) -> None:
        """To whatever it can listen at, which no table knows."""
        for own in ("127.0.0.1", "127.0.0.77"):
            with pytest.raises(FetchError, match="this machine"):
                _check_foreign("open.test", [own])
        _check_foreign("open.test", ["93.184.215.14", "2606:4700:4700::1001"])

    def test_to_a_public_address_of_this_machine_is_refused(
        self, net: Internet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def bind(connection: socket.socket, address: tuple[str, int]) -> None:
            if address[0] != "93.184.215.14":
                raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")

        monkeypatch.setattr(socket.socket, "bind", bind)
        refused("http://open.test/a.png")
        refused("http://two.test/a.png")
        assert net.connects == []
        assert fetch("http://other.test/a.png", guard=Guard()) == PNG

    def test_where_one_can_listen_at_any_address_is_judged_by_who_answers(
        self, net: Internet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As where a machine may take over the address of another one that has failed."""
        monkeypatch.setattr(socket.socket, "bind", lambda connection, address: None)
        assert fetch("http://open.test/a.png", guard=Guard()) == PNG
        net.forget()
        monkeypatch.setattr(socket.socket, "getsockname", lambda connection: ("93.184.215.14", 40_000))
        refused("http://open.test/a.png")
        assert net.connects
        assert net.asked == []

    def test_goes_nowhere_while_nobody_can_say_whose_an_address_is(
        self, net: Internet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def bind(connection: socket.socket, address: tuple[str, int]) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        monkeypatch.setattr(socket.socket, "bind", bind)
        refused("http://open.test/a.png")
        assert net.connects == []

    def test_with_more_tries_looks_up_and_checks_each_time(self, net: Internet) -> None:
        net.dead["93.184.215.14"] = "refused"
        refused("http://rebind.test/a.png", limits=FetchLimits(tries=3, wait_s=0.01))
        assert net.connects == [("93.184.215.14", 80)]

    def test_tells_the_server_nothing_of_the_caller(self, net: Internet) -> None:
        fetch("http://open.test/r/302?to=/b.png", guard=Guard(), headers={"Authorization": "Bearer x"})
        first, second = (set(asked.headers) for asked in net.asked)
        assert first == {"Host", "User-Agent", "Accept-Encoding", "Authorization"}
        assert second == {"Host", "User-Agent", "Accept-Encoding"}  # not even to the same server
        assert net.asked[0].headers["Accept-Encoding"] == "identity"

    def test_over_tls_names_the_host_and_believes_its_certificate_alone(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        certificate = certificate_for(["open.test", "rebind.test"], tmp_path)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with internet(monkeypatch, fresh(NAMES), certificate=certificate) as net:
            assert fetch("https://rebind.test/a.png", guard=Guard()) == PNG
            assert net.connects == [("93.184.215.14", 443)]
            assert net.asked[0].host == "rebind.test"
            assert fetch("http://other.test/r/302?to=https://open.test:8443/a.png", guard=Guard()) == PNG
            net.forget()
            refused("https://other.test/a.png")  # the certificate is not its
            assert net.connects
            assert net.asked == []
            refused("https://open.test/r/302?to=http://open.test/a.png")  # back to what anybody reads
            assert [port for _, port in net.connects] == [443, 443]
