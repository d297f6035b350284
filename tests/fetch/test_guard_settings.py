"""What a guard may be told, and what it tells a stranger."""

from __future__ import annotations

import logging
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from internet import PNG, Internet, Pictures, internet
from lmm_classifier.errors import FetchError
from lmm_classifier.fetch import Guard, fetch
from strangers import NAMES, QUICK, SAME, refused, told

pytestmark = pytest.mark.usefixtures("no_network")


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
    @pytest.fixture
    def inside(self) -> Iterator[tuple[Guard, tuple[str, ...]]]:
        """URLs that lead inside, to an open port, a closed one, a filtered one, and one that redirects."""
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            listening.listen()
            opened = listening.getsockname()[1]
            urls = (
                f"http://lo.test:{opened}/",
                "http://lo.test:1/",
                "http://inside.test:1/",
                f"http://127.0.0.1:{opened}/",
            )
            yield Guard(ports=(opened, 1)), urls

    def test_is_the_same_for_open_closed_and_filtered_ports_inside(
        self, inside: tuple[Guard, tuple[str, ...]], net: Internet
    ) -> None:
        guard, urls = inside
        for url in urls:
            refused(url, guard)
        assert net.connects == []  # so that it takes as long, too

    @pytest.mark.timing
    def test_takes_as_long_for_open_closed_and_filtered_ports_inside(
        self, inside: tuple[Guard, tuple[str, ...]], net: Internet
    ) -> None:
        guard, urls = inside
        took: dict[str, list[float]] = {url: [] for url in urls}
        for _ in range(15):
            for url in urls:
                started = time.perf_counter()
                refused(url, guard)
                took[url].append(time.perf_counter() - started)
        medians = [statistics.median(values) for values in took.values()]
        assert max(medians) - min(medians) < 0.05

    def test_is_the_same_whatever_is_wrong(self, net: Internet) -> None:
        net.dead = {"151.101.65.69": "refused", "8.8.4.4": "filtered"}
        urls = (
            "http://lo.test/",
            "http://nobody.test/",
            "http://other.test/",
            "http://8.8.4.4/",
            "http://open.test/r/404?to=",
            "http://open.test/r/302?to=http://169.254.169.254/",
            "no url",
            "http://" + "a" * 70 + ".test/",
        )
        assert {told(url) for url in urls} == {SAME}

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
