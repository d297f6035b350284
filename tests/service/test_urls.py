"""`POST /analyze_image/`: what is fetched, and where a stranger's URL may lead the service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from internet import PNG, Internet, internet
from served import Reply, Served, as_tasks, classifier, serving
from strangers import ALLOWED, NAMES, REFUSED, fresh, table_of_the_house

GOOD = "http://open.test/a.png"


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> Iterator[Internet]:
    with internet(monkeypatch, fresh(NAMES)) as net:
        yield net


@pytest.fixture(scope="module")
def fetching(index: Path) -> Iterator[Served]:
    with serving(classifier(index, fetch={"enabled": True})) as served:
        yield served


def look(service: Served, url: Any, *tasks: Any) -> Reply:
    return service.ask("POST", "/analyze_image/", json={"image_url": url, "tasks": as_tasks(*tasks)})


def test_the_photo_is_fetched_once_for_all_tasks(fetching: Served, net: Internet) -> None:
    reply = look(fetching, GOOD, "describe_image", "embed_siglip", "label_image")
    assert reply.status == 200
    assert reply.json["image_url"] == GOOD
    assert reply.json["results"]["0"]["data"] == "a picture of 4 by 4 pixels"
    assert [asked.path for asked in net.asked] == ["/a.png"]


@pytest.mark.parametrize(
    "url", ["ftp://open.test/a.png", "file:///etc/passwd", "a.png", "", None, 3, "x" * 3000]
)
def test_what_is_no_web_address_is_refused_as_malformed(url: Any, fetching: Served, net: Internet) -> None:
    reply = look(fetching, url)
    assert (reply.status, reply.json["code"]) == (422, "malformed")
    assert reply.json["detail"].startswith("body.image_url: ")
    assert net.connects == []


@pytest.mark.parametrize("url", ALLOWED)
def test_a_good_url_is_looked_at(url: str, fetching: Served, net: Internet) -> None:
    assert look(fetching, url).status == 200
    assert net.forbidden_connects == []


WEB = [url for url in REFUSED if url.lower().startswith(("http://", "https://"))]


@pytest.mark.parametrize("url", WEB)
def test_a_bad_url_gets_the_one_answer(url: str, fetching: Served, net: Internet) -> None:
    """400, and nothing that would tell what is there."""
    reply = look(fetching, url)
    assert net.forbidden_connects == []
    if reply.status != 422:  # which is too long to be a URL
        assert reply.status == 400
        assert reply.json == {
            "detail": "no image can be fetched from this URL",
            "code": "image_url_not_fetchable",
        }


def test_the_table_of_the_house_holds_over_http(
    fetching: Served, monkeypatch: pytest.MonkeyPatch, realdata: Path
) -> None:
    names, rows = table_of_the_house(realdata)
    wrong = []
    for url, verdict in rows:
        with monkeypatch.context() as patched, internet(patched, fresh(names)) as net:
            reply = look(fetching, url)
        over_tls = any(port == 443 for _, port in net.connects)  # no certificate: judged by its connection
        if net.forbidden_connects or (reply.status == 200 or over_tls) != (verdict == "allow"):
            wrong.append((url, verdict, reply.status, net.connects))
    assert len(rows) > 50
    assert wrong == []


def test_a_page_that_says_it_is_a_photo_is_refused(fetching: Served, net: Internet) -> None:
    net.server.pages["/page"] = lambda page: page.say(200, b"<html>", Content_Type="image/png")
    reply = look(fetching, "http://open.test/page")
    assert (reply.status, reply.json["code"]) == (400, "unsupported_format")


def test_a_photo_that_is_too_large_is_not_read_to_its_end(fetching: Served, net: Internet) -> None:
    net.server.pages["/large"] = lambda page: page.say(200, bytes(26 * 2**20))
    reply = look(fetching, "http://open.test/large")
    assert (reply.status, reply.json["code"]) == (413, "too_large")


def test_fetching_is_off_unless_it_is_switched_on(service: Served, net: Internet) -> None:
    reply = look(service, GOOD)
    assert (reply.status, reply.json["code"]) == (400, "fetch_disabled")
    assert net.looked_up == []


def test_domains_and_ports_can_be_listed(index: Path, net: Internet) -> None:
    chosen = {"enabled": True, "domains": [".open.test"], "ports": [8080]}
    with serving(classifier(index, fetch=chosen)) as service:
        assert look(service, "http://127.0.0.1.open.test:8080/a.png").status == 200
        assert look(service, "http://127.0.0.1.open.test/a.png").status == 400
        assert look(service, "http://open.test:8080/a.png").status == 400
        assert look(service, "http://notopen.test:8080/a.png").status == 400


def test_many_photos_answer_line_by_line_in_their_order(fetching: Served, net: Internet) -> None:
    reply = fetching.ask(
        "POST",
        "/analyze_images/",
        files=[("image_files", ("1.png", PNG)), ("image_files", ("2.png", b"broken"))],
        data={
            "image_urls": [GOOD, "http://lo.test/", "nothing", "http://two.test/a.png"],
            "tasks_json": json.dumps(as_tasks("describe_image")),
        },
    )
    assert (reply.status, reply.headers["content-type"]) == (200, "application/x-ndjson")
    lines = [json.loads(line) for line in reply.body.decode().splitlines()]
    assert [line["image_url"] for line in lines] == [
        "uploaded:1.png",
        "uploaded:2.png",
        GOOD,
        "http://lo.test/",
        "nothing",
        "http://two.test/a.png",
    ]
    assert [line.get("code") for line in lines] == [
        None,
        "unsupported_format",
        None,
        "image_url_not_fetchable",
        "malformed",
        None,
    ]
    assert lines[5]["results"]["0"]["data"] == "a picture of 4 by 4 pixels"
    assert net.forbidden_connects == []


@pytest.mark.parametrize("n", [0, 257])
def test_many_photos_are_at_least_one_and_not_too_many(n: int, fetching: Served) -> None:
    reply = fetching.ask(
        "POST", "/analyze_images/", data={"image_urls": [GOOD] * n, "tasks_json": "[]"}, files={"x": b""}
    )
    assert (reply.status, reply.json["code"]) == (422, "number_of_images")
