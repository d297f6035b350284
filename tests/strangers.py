"""URLs of strangers, good and bad, and the one error about the bad ones."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from lmm_classifier.errors import FetchError
from lmm_classifier.fetch import FetchLimits, Guard, fetch

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


def fresh(names: dict) -> dict:
    return {
        name: value if isinstance(value, str) else [list(one) for one in value]
        for name, value in names.items()
    }


def told(url: str, guard: Guard | None = None, limits: FetchLimits = QUICK) -> str:
    """What a stranger is told of a URL that is refused: no more than the text."""
    with pytest.raises(FetchError) as caught:
        fetch(url, guard=guard or Guard(), limits=limits)
    assert caught.value.__cause__ is None
    assert (caught.value.status, caught.value.said) == (None, "")
    return str(caught.value)


def refused(url: str, guard: Guard | None = None, limits: FetchLimits = QUICK) -> None:
    """With the one error that there is."""
    assert told(url, guard, limits) == SAME


def table_of_the_house(realdata: Path) -> tuple[dict[str, list[list[str]]], list[tuple[str, str]]]:
    """The names of LMM_CLASSIFIER_REALDATA, and its URLs with "allow" or "block".

    A URL is written as the body of a JSON string; `|` between answers separates later look-ups.
    """
    if not (realdata / "ssrf").is_dir():
        pytest.skip("LMM_CLASSIFIER_REALDATA has no folder ssrf/ with cases.tsv and dns.tsv")
    names: dict[str, list[list[str]]] = {"nxdomain.test": [[]]}
    for name, answers in _rows(realdata / "ssrf" / "dns.tsv"):
        names[name] = [[one.strip() for one in now.split(",")] for now in answers.split("|")]
    rows = [(json.loads(f'"{url}"'), verdict) for url, verdict, _ in _rows(realdata / "ssrf" / "cases.tsv")]
    assert {verdict for _, verdict in rows} == {"block", "allow"}
    return names, rows


def _rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
