"""Where a stranger may send us: every row by the connections that were seen, not by what was raised.

The material of LMM_CLASSIFIER_REALDATA is read where it is; the rows here are others and need none.
"""

from __future__ import annotations

import csv
import errno
import json
import logging
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from internet import PNG, Internet, Pictures, certificate_for, internet
from lmm_classifier.errors import FetchError
from lmm_classifier.fetch import FetchLimits, Guard, fetch
from lmm_classifier.fetch.connection import _check_foreign

pytestmark = pytest.mark.usefixtures("no_network")
QUICK = FetchLimits(connect_s=1, silence_s=0.4, total_s=1.0, max_bytes=10_000, tries=1)
SAME = "no image can be fetched from this URL [image_url_not_fetchable]"
NAMES = {
    "open.test": "93.184.215.14",
    "other.test": "151.101.65.69",
    "two.test": "93.184.215.14 151.101.65.69",
    "six.test": "2606:4700:4700::1001",
    "both.test": "2606:4700:4700::1001 93.184.215.14",
    "xn--kse-qla.test": "93.184.215.14",
    "127.0.0.1.open.test": "93.184.215.14",
    "localhost": "::1 127.0.0.1",
    "lo.test": "127.0.0.1",
    "inside.test": "10.20.30.40",
    "meta.test": "169.254.169.254",
    "mixed.test": "93.184.215.14 10.20.30.40",
    "mixed-last.test": "10.20.30.40 93.184.215.14",
    "mixed-six.test": "93.184.215.14 ::1",
    "mapped.test": "::ffff:127.0.0.1",
    "mapped-public.test": "::ffff:8.8.8.8",
    "nat64.test": "64:ff9b::a00:1",
    "sixtofour.test": "2002:7f00:1::",
    "isatap.test": "2606:4700::5efe:a00:1",
    "cloud.test": "168.63.129.16",
    "nobody.test": "",
    "metadata.google.internal": "169.254.169.254",
    "rebind.test": [["93.184.215.14"], ["127.0.0.1"]],
    "rebind-back.test": [["127.0.0.1"], ["93.184.215.14"]],
}
ALLOWED = [
    "http://open.test/a.png",
    "HTTP://Open.TEST./a.png",
    "http://open.test:8080/a.png",
    "http://open.test:80/a.png",
    "http://open.test",
    "http://open.test/a.png#part",
    "http://open.test/a.png?u=http://10.0.0.1/",
    "http://open.test/a b.png".replace(" ", "%20"),
    "http://open.test/ä.png",
    "http://käse.test/a.png",
    "http://127.0.0.1.open.test/a.png",
    "http://two.test/a.png",
    "http://six.test/a.png",
    "http://both.test/a.png",
    "http://rebind.test/a.png",
    "http://8.8.4.4/a.png",
    "http://11.0.0.0/a.png",
    "http://126.255.255.255/a.png",
    "http://172.32.0.0/a.png",
    "http://100.128.0.0/a.png",
    "http://223.255.255.255/a.png",
    "http://[2606:4700:4700::1001]/a.png",
    "http://open.test/r/301?to=/a.png",
    "http://open.test/r/302?to=//other.test/a.png",
    "http://open.test/r/303?to=http://other.test:8080/a.png",
    "http://open.test/r/307?to=http://8.8.4.4/a.png",
    "http://open.test/r/308?to=../a.png",
    "http://open.test/r/chain?n=2&to=http://other.test/a.png",
]
REFUSED = [
    "http://127.0.0.1/",
    "http://127.255.255.254/",
    "http://0.0.0.0/",
    "http://localhost/",
    "http://LocalHost./",
    "http://lo.test/",
    "http://[::]/",
    "http://[::1]/",
    "http://[0:0:0:0:0:ffff:7f00:1]/",
    "http://[::ffff:10.20.30.40]/",
    "http://[::10.20.30.40]/",
    "http://[64:ff9b::10.20.30.40]/",
    "http://[64:ff9b:1::10.20.30.40]/",
    "http://[2002:a14:1e28::]/",
    "http://[2001:0:4136:e378:8000:63bf:f5eb:e1d7]/",
    "http://[2606:4700::5efe:a14:1e28]/",
    "http://[fe80::1]/",
    "http://[fec0::1]/",
    "http://[fd00:ec2::254]/",
    "http://[ff02::1]/",
    "http://[100::1]/",
    "http://[5f00::1]/",
    "http://[3fff::1]/",
    "http://[4000::1]/",
    "http://10.255.255.255/",
    "http://172.16.0.1/",
    "http://172.31.255.255/",
    "http://192.168.0.1/",
    "http://100.64.0.1/",
    "http://169.254.169.254/latest/meta-data/",
    "http://168.63.129.16/",
    "http://192.0.0.192/",
    "http://198.19.255.255/",
    "http://203.0.113.9/",
    "http://224.0.0.1/",
    "http://255.255.255.255/",
    "http://2130706433/",
    "http://0x7f.1/",
    "http://0177.1/",
    "http://127.1/",
    "http://3627733774/",
    "http://①②⑦.⓪.⓪.①/",
    "http://127。0。0。1/",
    "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ/",
    "http://loc\u00adalhost/",
    "http://inside.test/",
    "http://meta.test/",
    "http://metadata.google.internal/computeMetadata/v1/",
    "http://mixed.test/",
    "http://mixed-last.test/",
    "http://mixed-six.test/",
    "http://mapped.test/",
    "http://mapped-public.test/",
    "http://nat64.test/",
    "http://sixtofour.test/",
    "http://isatap.test/",
    "http://cloud.test/",
    "http://nobody.test/",
    "http://rebind-back.test/",
    "http://open.test@lo.test/",
    "http://lo.test#@open.test/",
    "http://lo.test\\@open.test/",
    "http://open.test\\@lo.test/",
    "http://lo%2etest/",
    "http://open.test\t@lo.test/",
    "http://lo.test\x00.open.test/",
    "http://open.test/\r\n\r\nGET / HTTP/1.1",
    "http:///lo.test/",
    "//lo.test/",
    "ftp://open.test/",
    "file:///etc/passwd",
    "data:image/png;base64,iVBORw0KGgo=",
    "gopher://127.0.0.1:6379/_FLUSHALL",
    # ports
    "http://open.test:22/",
    "http://open.test:25/",
    "http://open.test:81/",
    "http://open.test:6379/",
    "http://open.test:0/",
    "http://open.test:65616/",
    "https://open.test:80443/",
    # redirects: the first answer is that of open.test
    "http://open.test/r/302?to=http://127.0.0.1/",
    "http://open.test/r/301?to=http://[::1]/",
    "http://open.test/r/303?to=http://meta.test/",
    "http://open.test/r/307?to=//inside.test/a.png",
    "http://open.test/r/308?to=http://mixed.test/",
    "http://open.test/r/302?to=http://0x7f000001/",
    "http://open.test/r/302?to=http://open.test@127.0.0.1/",
    "http://open.test/r/302?to=http://lo.test\\@open.test/",
    "http://open.test/r/302?to=http://open.test:22/",
    "http://open.test/r/302?to=file:///etc/passwd",
    "http://open.test/r/302?to=ftp://open.test/a.png",
    "http://open.test/r/302?to=",
    "http://open.test/r/chain?n=1&to=http://inside.test/",
    "http://open.test/r/chain?n=2&to=http://127.0.0.1/",
    "http://open.test/r/chain?n=3&to=http://other.test/a.png",
    "http://rebind.test/r/302?to=http://rebind.test/a.png",
    "http://open.test/r/300?to=/a.png",
    "http://open.test/r/304?to=/a.png",
    "http://open.test/r/404?to=/a.png",
]


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> Iterator[Internet]:
    with internet(monkeypatch, fresh(NAMES)) as net:
        yield net


def fresh(names: dict) -> dict:
    return {
        name: value if isinstance(value, str) else [list(one) for one in value]
        for name, value in names.items()
    }


def refused(url: str, guard: Guard | None = None, limits: FetchLimits = QUICK) -> None:
    """With the one error that there is."""
    with pytest.raises(FetchError) as caught:
        fetch(url, guard=guard or Guard(), limits=limits)
    assert str(caught.value) == SAME
    assert caught.value.__cause__ is None
    assert (caught.value.status, caught.value.said) == (None, "")


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


def test_the_table_of_the_house(realdata: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Column 1 is the body of a JSON string; `|` in the other table separates later look-ups."""
    if not (realdata / "ssrf").is_dir():
        pytest.skip("LMM_CLASSIFIER_REALDATA has no folder ssrf/ with cases.tsv and dns.tsv")
    names: dict[str, list[list[str]]] = {}
    for name, answers in table(realdata / "ssrf" / "dns.tsv"):
        names[name] = [[one.strip() for one in now.split(",")] for now in answers.split("|")]
    rows = [(json.loads(f'"{url}"'), verdict) for url, verdict, _ in table(realdata / "ssrf" / "cases.tsv")]
    assert {verdict for _, verdict in rows} == {"block", "allow"}
    wrong = []
    started = time.monotonic()
    for url, verdict in rows:
        with (
            monkeypatch.context() as patched,
            internet(patched, fresh({"nxdomain.test": "", **names})) as net,
        ):
            said = outcome(url)
        assert said in (PNG, SAME)
        over_tls = any(port == 443 for _, port in net.connects)  # no certificate: judged by its connection
        if net.forbidden_connects or (said == PNG or over_tls) != (verdict == "allow"):
            wrong.append((url, verdict, said, net.connects))
    assert wrong == []
    assert time.monotonic() - started < 10


def outcome(url: str) -> bytes | str:
    try:
        return fetch(url, guard=Guard(), limits=QUICK)
    except FetchError as error:
        return str(error)


def table(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]


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


class TestSettings:
    def test_of_ports(self, net: Internet) -> None:
        assert fetch("http://open.test:9000/", guard=Guard(ports=(9000,))) == PNG
        refused("http://open.test/", Guard(ports=(9000,)))

    @pytest.mark.parametrize(
        ("domains", "good", "bad"),
        [
            (("open.test",), ["open.test", "OPEN.test."], ["127.0.0.1.open.test", "other.test", "8.8.4.4"]),
            ((".open.test",), ["127.0.0.1.open.test"], ["open.test", "two.test"]),
            (("open.test", ".open.test"), ["open.test", "127.0.0.1.open.test"], ["xopen.test", "open.testx"]),
            (("Käse.test",), ["käse.test", "xn--kse-qla.test"], ["open.test"]),
            (("8.8.4.4",), ["8.8.4.4"], ["8.8.4.41", "open.test"]),
            (("lo.test",), [], ["lo.test", "open.test"]),
        ],
    )
    def test_of_domains(
        self, domains: tuple[str, ...], good: list[str], bad: list[str], net: Internet
    ) -> None:
        for name in ("xopen.test", "open.testx", "open.test.other.test"):
            net.names[name] = [["93.184.215.14"]]
        for host in good:
            assert fetch(f"http://{host}/", guard=Guard(domains=domains)) == PNG
        net.forget()
        for host in [*bad, "open.test.other.test"]:
            refused(f"http://{host}/", Guard(domains=domains))
        assert net.connects == []

    def test_of_domains_hold_for_redirects(self, net: Internet) -> None:
        refused("http://open.test/r/302?to=http://other.test/a.png", Guard(domains=("open.test",)))
        assert [address for address, _ in net.connects] == ["93.184.215.14"]

    def test_of_networks(self, net: Internet) -> None:
        refused("http://two.test/", Guard(forbidden=("151.101.0.0/16",)))
        assert net.connects == []

    @pytest.mark.parametrize(
        "settings",
        [
            {"domains": ("*.open.test",)},
            {"domains": ("",)},
            {"forbidden": ("10.0.0.1/8",)},
            {"domains": ("8.8",)},
        ],
    )
    def test_that_mean_nothing_are_refused(self, settings: dict) -> None:
        with pytest.raises(ValueError, match="."):
            Guard(**settings)


TRAPS = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")


def test_proxies_and_passwords_of_the_environment_are_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, net: Internet
) -> None:
    """The trap listens: were it asked, it would be seen."""
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine open.test login me password secret\ndefault login me password secret\n")
    netrc.chmod(0o600)
    with socket.socket() as trap:
        trap.bind(("127.0.0.1", 0))
        trap.listen()
        trap.setblocking(False)
        for name in TRAPS:
            monkeypatch.setenv(name, f"http://127.0.0.1:{trap.getsockname()[1]}")
        for name, value in (("NO_PROXY", ""), ("no_proxy", ""), ("HOME", tmp_path), ("NETRC", netrc)):
            monkeypatch.setenv(name, str(value))
        assert fetch("http://open.test/a.png", guard=Guard()) == PNG
        refused("http://lo.test/a.png")
        with pytest.raises(BlockingIOError):
            trap.accept()
    assert net.connects == [("93.184.215.14", 80)]
    assert set(net.asked[0].headers) == {"Host", "User-Agent", "Accept-Encoding"}


class TestTheAnswerToAStranger:
    def test_is_the_same_for_open_closed_and_filtered_ports_inside(
        self, monkeypatch: pytest.MonkeyPatch, net: Internet
    ) -> None:
        """In what it says and in how long it takes."""
        with socket.socket() as inside:
            inside.bind(("127.0.0.1", 0))
            inside.listen()
            opened = inside.getsockname()[1]
            guard = Guard(ports=(opened, 1))
            urls = {
                "open": f"http://lo.test:{opened}/",
                "closed": "http://lo.test:1/",
                "filtered": "http://inside.test:1/",
                "by a redirect": f"http://127.0.0.1:{opened}/",
            }
            took: dict[str, list[float]] = {kind: [] for kind in urls}
            for _ in range(15):
                for kind, url in urls.items():
                    started = time.perf_counter()
                    refused(url, guard)
                    took[kind].append(time.perf_counter() - started)
        assert net.connects == []
        medians = [statistics.median(values) for values in took.values()]
        assert max(medians) - min(medians) < 0.05

    def test_is_the_same_whatever_is_wrong(self, net: Internet) -> None:
        net.dead = {"151.101.65.69": "refused", "8.8.4.4": "filtered"}
        for url in (
            "http://lo.test/",
            "http://nobody.test/",
            "http://other.test/",
            "http://8.8.4.4/",
            "http://open.test/r/404?to=",
            "http://open.test/r/302?to=http://169.254.169.254/",
            "no url",
            "http://" + "a" * 70 + ".test/",
        ):
            refused(url)

    def test_leaves_the_reason_and_no_secret_in_the_log(
        self, net: Internet, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, logger="lmm_classifier")
        reasons = {
            "http://lo.test/s3cret?s3cret": "lo.test: 127.0.0.1 is not public",
            "http://open.test:22/s3cret?s3cret": "http://open.test:22: port 22 is not allowed",
            "http://open.test/r/404?to=s3cret": "http://open.test: the server answers 404",
            "http://open.test/r/302?to=http://open.test:22/s3cret": "port 22",
            "http://open.test/r/302?to=http://s3cret@open.test/": "redirected to what is no URL to fetch",
            "http://s3cret:s3cret@open.test/s3cret": "no URL to fetch",
            "http://open.test/r/chain?n=9&to=s3cret": "redirected more than 3 times",
            "http://nobody.test/s3cret\u2028": "http://nobody.test: no whole answer (ConnectError)",
        }
        for url, reason in reasons.items():
            caplog.clear()
            refused(url)
            [record] = [record for record in caplog.records if record.name.startswith("lmm_classifier")]
            line = record.getMessage()
            assert reason in line
            assert "s3cret" not in line
            assert line.isprintable()

    def test_says_when_a_picture_is_too_large_and_nothing_else(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pages = {"/big": lambda page: page.say(200, b" " * 20_000)}
        with internet(monkeypatch, NAMES, pages) as net, pytest.raises(FetchError) as caught:
            fetch("http://open.test/r/302?to=http://other.test/big", guard=Guard(), limits=QUICK)
        assert net.connects[-1] == ("151.101.65.69", 80)
        assert str(caught.value) == "the image of this URL has more than 10000 bytes [too_large]"


@pytest.mark.parametrize(
    ("said", "taken"),
    [
        ("image/png", True),
        ("Image/JPEG; q=1", True),
        ("application/octet-stream", True),
        ("", True),
        ("text/html; charset=utf-8", False),
        ("application/json", False),
        ("multipart/x-mixed-replace", False),
    ],
)
def test_the_type_of_an_answer_may_refuse_it(said: str, taken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def page(handler: Pictures) -> None:
        handler.say(200, PNG, **({"Content_Type": said} if said else {}))

    with internet(monkeypatch, NAMES, {"/a": page}):
        if taken:
            assert fetch("http://open.test/a", guard=Guard()) == PNG
        else:
            refused("http://open.test/a")


def test_many_at_once_keep_apart(net: Internet) -> None:
    """A guard holds no state: one object serves all requests of a service."""
    guard = Guard()
    found: list[object] = []

    def one(call: Callable[[], object]) -> None:
        try:
            found.append(call())
        except FetchError as error:
            found.append(error.code)

    calls = [
        lambda: fetch("http://open.test/a.png", guard=guard),
        lambda: fetch("http://lo.test/", guard=guard),
    ]
    threads = [threading.Thread(target=one, args=(calls[number % 2],)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, found)) == sorted([str(PNG), "image_url_not_fetchable"] * 8)
    assert net.forbidden_connects == []
