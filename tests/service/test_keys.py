"""Who is let in, and how often."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmm_classifier.config.service import is_loopback
from lmm_classifier.service.rate_limit import RateLimiter
from served import FAKE, Served, classifier, encoded, serving
from shell import run
from synthetic import COLOURS, picture

KEY = "a key of somebody"
DIGEST = f"sha256:{hashlib.sha256(KEY.encode()).hexdigest()}"
PHOTO = encoded(picture(COLOURS["red"], seed=1))
ROUTES = (
    ("POST", "/analyze_image/"),
    ("POST", "/analyze_image_upload/"),
    ("POST", "/analyze_images/"),
    ("GET", "/available_operations/"),
    ("GET", "/collections/"),
    ("GET", "/collections/7"),
    ("GET", "/metrics"),
    ("GET", "/docs"),
    ("GET", "/openapi.json"),
    ("GET", "/"),
    ("GET", "/page.js"),
    ("GET", "/nothing"),
)
TRICKS = (
    {},
    {"authorization": "Bearer"},
    {"authorization": "Bearer wrong"},
    {"authorization": f"Bearer {DIGEST}"},
    {"authorization": f"Digest {KEY}"},
    {"authorization": "Basic !!!"},
    {"authorization": "Basic " + base64.b64encode(b"\xff:\xff").decode()},
    {"authorization": "Basic " + base64.b64encode(b"anybody:").decode()},
    {"authorization": "Basic " + base64.b64encode(b"a:wrong").decode()},
    {"authorization": "Basic " + base64.b64encode(f"{KEY}:".encode()).decode()},
    {"host": "localhost/health"},
    {"host": "127.0.0.1/health?"},
    {"x-forwarded-for": "127.0.0.1", "x-original-url": "/health", "x-rewrite-url": "/health"},
)


@pytest.fixture(scope="module")
def locked(index: Path) -> Iterator[Served]:
    with serving(classifier(index, api_keys=["sha256:" + "0" * 64, DIGEST])) as served:
        yield served


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_without_a_key_nobody_is_let_in(method: str, path: str, locked: Served) -> None:
    for trick in TRICKS:
        reply = locked.ask(method, path, trick)
        assert (reply.status, reply.json["code"]) == (401, "no_key"), trick
        assert reply.headers["www-authenticate"].startswith("Basic")
    for spelt in (
        f"/{path}",
        path.upper(),
        f"{path}?/health",
        f"/health/..{path}",
        f"/%2e{path}",
        f"{path}%00",
    ):
        assert locked.ask(method, spelt).status == 401, spelt


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_what_starts_and_stops_it_needs_none(path: str, locked: Served) -> None:
    assert locked.ask("GET", path).status == 200
    assert locked.ask("GET", f"{path}/").status == 401


@pytest.mark.parametrize(
    "key",
    [f"Bearer {KEY}", f"bearer {KEY}", "Basic " + base64.b64encode(f"anybody:{KEY}".encode()).decode()],
)
def test_with_a_key_everything_answers(key: str, locked: Served) -> None:
    let_in = {"authorization": key}
    assert locked.ask("GET", "/available_operations/", let_in).status == 200
    assert locked.ask("GET", "/", let_in).status == 200
    assert locked.upload(PHOTO, "embed_siglip", headers=let_in).status == 200


@pytest.mark.parametrize(
    "headers",
    [{"host": "evil.test"}, {"host": "evil.test:8000"}, {"host": ""}, {"sec-fetch-site": "cross-site"}],
)
def test_without_keys_pages_of_others_cannot_reach_it(headers: dict[str, str], service: Served) -> None:
    reply = service.ask("GET", "/available_operations/", headers)
    assert (reply.status, reply.json["code"]) == (403, "foreign")


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST.", "127.0.0.1:1", "[::1]", "[::1]:8000", "127.0.0.2:80"]
)
def test_without_keys_this_machine_can(host: str, service: Served) -> None:
    assert service.ask("GET", "/available_operations/", {"host": host}).status == 200


def test_without_keys_it_does_not_start_for_other_machines(index: Path, tmp_path: Path) -> None:
    classifier(index).config.to_yaml(tmp_path / "open.yaml")
    result = run("serve", "-c", "open.yaml", "--host", "0.0.0.0", cwd=tmp_path)  # noqa: S104
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: 0.0.0.0 can be reached from other machines: put a key into")


@pytest.mark.parametrize(
    ("host", "is_this_machine"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),  # noqa: S104
        ("::", False),
        ("192.168.1.5", False),
        ("example.test", False),
        ("localhost.example.test", False),
        ("", False),
    ],
)
def test_what_only_this_machine_reaches(host: str, is_this_machine: bool) -> None:
    assert is_loopback(host) is is_this_machine


def test_a_key_that_is_made_fits_what_is_said_to_be_put_into_the_settings(tmp_path: Path) -> None:
    said = run("key", cwd=tmp_path).stdout
    key, digest = re.fullmatch(r"key:      (\S+)\napi_keys: (sha256:[0-9a-f]{64})\n", said).groups()
    assert len(key) >= 43  # 32 random bytes
    assert digest == f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"
    assert run("key", cwd=tmp_path).stdout != said


@pytest.mark.parametrize("wrong", [KEY, "sha256:" + hashlib.sha256(b"").hexdigest()])
def test_a_key_in_the_clear_and_none_at_all_are_refused(wrong: str, index: Path) -> None:
    with pytest.raises(ValueError, match="api_keys"):
        classifier(index, api_keys=[wrong])


def test_what_a_client_makes_up_is_not_counted_for_ever(service: Served) -> None:
    for i in range(20):
        service.ask(f"M{i}", "/health")
        service.ask("GET", f"/nothing/{i}")
    counted = service.ask("GET", "/metrics").body.decode()
    assert 'method="other",route="/health",status="405"' in counted
    assert "M1" not in counted
    assert "nothing" not in counted


def test_who_asks_too_often_must_wait(index: Path) -> None:
    other = f"sha256:{hashlib.sha256(b'other').hexdigest()}"
    with serving(classifier(index, rate=3, api_keys=[DIGEST, other])) as service:
        mine = {"authorization": f"Bearer {KEY}"}
        replies = [service.ask("GET", "/collections/", mine) for _ in range(5)]
        assert [reply.status for reply in replies] == [200, 200, 200, 429, 429]
        assert 1 <= int(replies[-1].headers["retry-after"]) <= 20
        assert replies[-1].json["code"] == "too_often"
        assert service.ask("GET", "/collections/", {"authorization": "Bearer other"}).status == 200
        assert service.ask("GET", "/health").status == 200


def test_rates_fill_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("lmm_classifier.service.rate_limit.time.monotonic", lambda: now[0])
    rates = RateLimiter(60)  # one a second
    assert [rates.wait_for("a") for _ in range(61)] == [0] * 60 + [1]
    now[0] += 1.5
    assert [rates.wait_for("a") for _ in range(2)] == [0, 1]
    now[0] += 1000
    assert [rates.wait_for("a") for _ in range(61)] == [0] * 60 + [1]


def test_every_answer_forbids_what_a_page_of_it_does_not_need(service: Served, locked: Served) -> None:
    for reply in (service.ask("GET", "/"), service.upload(PHOTO), locked.ask("GET", "/")):
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["content-security-policy"].startswith("default-src 'self'")
        assert reply.headers["cache-control"] == "no-store"
        assert "server" not in reply.headers


def test_the_settings_survive_a_round_trip(index: Path, tmp_path: Path) -> None:
    made = classifier(
        index, api_keys=[DIGEST], rate=5, fetch={"enabled": True, "domains": [".a.test"]}
    ).config
    made.to_yaml(tmp_path / "a.yaml")
    read = type(made).from_yaml(tmp_path / "a.yaml")
    assert read.service == made.service
    assert read.service.persons == FAKE


def test_who_has_no_key_hears_so_even_while_sending(locked: Served) -> None:
    """An answer before the end of the body would be lost: the client listens when it has sent all."""
    reply = locked.upload(PHOTO + bytes(8 * 2**20), "embed_siglip")
    assert (reply.status, reply.json["code"]) == (401, "no_key")
    assert "connection" not in reply.headers


def test_a_key_that_is_no_text_is_none(locked: Served) -> None:
    with locked.connect() as connection:
        connection.sendall(b"GET /docs HTTP/1.1\r\nhost: x\r\nauthorization: Basic \xff\xfe\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 401")
