"""The one reading of a URL: what is refused before anything is looked up."""

# ruff: noqa: RUF001 -- letters that look alike are the matter
from __future__ import annotations

import random
import string

import pytest

from lmm_classifier.fetch.url import Url, read_host, read_url


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("http://open.test/a.png", Url("http", "open.test", 80, "/a.png")),
        ("HTTPS://OPEN.Test", Url("https", "open.test", 443, "/")),
        ("http://open.test.:8080/a?b=c#d", Url("http", "open.test", 8080, "/a?b=c")),
        ("http://open.test?b", Url("http", "open.test", 80, "/?b")),
        ("http://open.test:/", Url("http", "open.test", 80, "/")),
        ("http://8.8.8.8/", Url("http", "8.8.8.8", 80, "/")),
        ("http://[2606:4700:4700:0::1111]:8443/", Url("http", "2606:4700:4700::1111", 8443, "/")),
        ("http://my_host-1/", Url("http", "my_host-1", 80, "/")),
        ("http://r3---a.open.test/", Url("http", "r3---a.open.test", 80, "/")),
        ("http://127.0.0.1.open.test/", Url("http", "127.0.0.1.open.test", 80, "/")),
        (
            "http://open.test/%41%zz?http://127.0.0.1/",
            Url("http", "open.test", 80, "/%41%zz?http://127.0.0.1/"),
        ),
        ("http://käse.test/ä?ö=%20", Url("http", "xn--kse-qla.test", 80, "/%C3%A4?%C3%B6=%20")),
        ("http://straße.test/", Url("http", "xn--strae-oqa.test", 80, "/")),  # as browsers, not "strasse"
        ("http://ＯＰＥＮ。test/", Url("http", "open.test", 80, "/")),
        ("http://xn--kse-qla.test/", Url("http", "xn--kse-qla.test", 80, "/")),
    ],
)
def test_is_what_everyone_reads(text: str, means: Url) -> None:
    assert read_url(text, international=True) == means
    assert read_url(str(means)) == means


REFUSED = [
    "",
    "a.png",
    "//open.test/a.png",
    "http:/open.test/",
    "http:open.test/",
    "http:///open.test/",
    "http://",
    "http://:80/",
    "httpſ://open.test/",
    "hｔtp://open.test/",
    " http://open.test/",
    "ftp://open.test/",
    "file:///etc/passwd",
    "data:image/png;base64,AAAA",
    "gopher://open.test/",
    "javascript:alert(1)",
    "http+unix://socket/",
    # the host that is meant is another one
    "http://user@open.test/",
    "http://user:word@open.test/",
    "http://open.test@127.0.0.1/",
    "http://open.test:80@127.0.0.1/",
    "http://open.test#@127.0.0.1/",
    "http://open.test\\@127.0.0.1/",
    "http://open.test/a\\b",
    "http://open.test%2f@127.0.0.1/",
    "http://open%2etest/",
    "http://open.test％2e/",
    "http://open.test／@x/",
    "http://open.test＃x/",
    "http://open.test：80/",
    "http://a＠open.test/",
    "http://a℀b.test/",
    # what some programs drop
    "http://op\ten.test/",
    "http://op\nen.test/",
    "http://open.test/\r\nHost: inside.test",
    "http://open.test\x00.inside.test/",
    "http://open.test/\x7f",
    "http://open .test/",
    "http://open.test/a b",
    # names
    "http://.test/",
    "http://open..test/",
    "http://open.test../",
    "http://-open.test/",
    "http://open-.test/",
    "http://open,inside.test/",
    "http://open;inside.test/",
    "http://open$.test/",
    "http://*.test/",
    "http://☃.test/",
    "http://a\u200db.test/",
    "http://\ud800.test/",
    "http://open.test/\ud800",
    # numbers that libc takes for an address
    "http://127.1/",
    "http://127.0.1/",
    "http://0/",
    "http://1/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0X7F.0.0.1/",
    "http://0x7f.1/",
    "http://1.0x/",
    "http://0x/",
    "http://017700000001/",
    "http://0177.0.0.1/",
    "http://127.0.0.01/",
    "http://08.8.8.8/",
    "http://8.8.8.8.8/",
    "http://8.8.8/",
    "http://8.8.8.256/",
    "http://8.8.8.0x8/",
    "http://134744072/",
    "http://1.2.3.4294967296/",
    "http://256.256.256.256/",
    "http://open.1/",
    "http://open.0x1/",
    "http://①②⑦.1/",
    "http://٨.8.8.8/",
    # brackets
    "http://[::1/",
    "http://::1/",
    "http://[]/",
    "http://[open.test]/",
    "http://[8.8.8.8]/",
    "http://[fe80::1%eth0]/",
    "http://[fe80::1%25eth0]/",
    "http://[v1.a]/",
    "http://[::1]x/",
    "http://x[::1]/",
    "http://[[::1]]/",
    "http://[:::1]/",
    "http://[1:2:3:4:5:6:7:8:9]/",
    "http://[::ffff:127.1]/",
    # ports
    "http://open.test:0/",
    "http://open.test:65536/",
    "http://open.test:99999/",
    "http://open.test:-80/",
    "http://open.test:+80/",
    "http://open.test:80:80/",
    "http://open.test:8 0/",
    "http://open.test:８０/",
    "http://open.test:http/",
    "http://open.test:0x50/",
    "http://open.test/" + "a" * 2048,
    "http://" + "a." * 1100 + "test/",
]


@pytest.mark.parametrize("text", REFUSED)
def test_what_somebody_could_read_otherwise_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="."):
        read_url(text, international=True)


def test_other_letters_are_refused_where_none_are_expected() -> None:
    for text in ("http://käse.test/", "http://open.test/ä"):
        with pytest.raises(ValueError, match="ASCII"):
            read_url(text)


@pytest.mark.parametrize(
    ("location", "leads"),
    [
        ("/b", "https://open.test:8443/b"),
        ("b", "https://open.test:8443/a/b"),
        ("?b", "https://open.test:8443/a/?b"),
        ("//other.test/b", "https://other.test/b"),
        ("http://other.test/b#c", "http://other.test/b"),
        ("/ä", "https://open.test:8443/%C3%A4"),
    ],
)
def test_a_redirect_is_read_from_where_it_came(location: str, leads: str) -> None:
    assert str(read_url("https://open.test:8443/a/").joined(location, international=True)) == leads


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "//a@other.test/", "\t//other.test", "\\\\other.test"]
)
def test_a_redirect_is_checked_like_a_url(location: str) -> None:
    with pytest.raises(ValueError, match="."):
        read_url("https://open.test/").joined(location)


def test_any_text_is_read_as_itself_or_refused() -> None:
    """What is read is written as it is read again, and holds nothing that ends a line or a name."""
    draw = random.Random(1)  # noqa: S311
    pieces = [
        *string.printable,
        *"ä。．０①\u00ad\ufeff\u202e\ud800",
        "http://",
        "open.test",
        "127.0.0.1",
        "[::1]",
        "%25",
    ]
    taken = 0
    for _ in range(20_000):
        text = "http://" + "".join(draw.choices(pieces, k=draw.randrange(1, 8)))
        try:
            url = read_url(text, international=True)
        except ValueError:
            continue
        taken += 1
        assert read_url(str(url)) == url
        assert read_host(f"[{url.host}]" if ":" in url.host else url.host) == url.host
        assert str(url).isascii()
        assert str(url).isprintable()
        assert not set(url.host) - set(string.ascii_lowercase + string.digits + ".-_:")
    assert taken > 200
