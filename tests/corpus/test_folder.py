from __future__ import annotations

import json
import os
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from lmm_classifier.corpus.corpus import SKIP_CODES, Corpus
from lmm_classifier.corpus.folder import read_folder
from lmm_classifier.corpus.images import load_image_file
from lmm_classifier.errors import CorpusError, ImageError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def paths(corpus: Corpus) -> list[str]:
    return [item.path for item in corpus.items]


def codes(corpus: Corpus) -> dict[str, str]:
    return {entry.path: entry.code for entry in corpus.skipped}


def test_the_label_is_the_first_folder(tmp_path: Path):
    corpus = read_folder(touch(tmp_path, "rose/a.jpg", "rose/2024/05/b.PNG", "lily/x.jpg/c.tiff"))
    found = [(item.path, item.label) for item in corpus.items]
    assert found == [("lily/x.jpg/c.tiff", "lily"), ("rose/2024/05/b.PNG", "rose"), ("rose/a.jpg", "rose")]
    assert (corpus.labels, corpus.skipped, corpus.warnings) == (("lily", "rose"), (), ())
    assert corpus.root == tmp_path


def test_a_label_may_be_named_like_a_file(tmp_path: Path):
    assert read_folder(touch(tmp_path, "x.jpg/a.jpg")).items[0].label == "x.jpg"


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"])
def test_suffixes_count_in_any_case(tmp_path: Path, suffix: str):
    corpus = read_folder(touch(tmp_path, f"a/1{suffix}", f"a/2{suffix.upper()}", f"a/3{suffix.title()}"))
    assert len(corpus.items) == 3


def test_the_order_is_bytewise_and_not_the_file_system_s(tmp_path: Path):
    names = ["a/b.jpg", "a/B.jpg", "a/a/z.jpg", "a-b/a.jpg", "Z/a.jpg", "é/a.jpg", "z/a.jpg", "a/\udcff.jpg"]
    forward = read_folder(touch(tmp_path / "1", *names))
    backward = read_folder(touch(tmp_path / "2", *reversed(names)))
    assert paths(forward) == sorted(names, key=os.fsencode) == paths(backward)


def test_every_other_file_is_accounted_for(tmp_path: Path):
    touch(
        tmp_path,
        "a/1.jpg",
        "a/notes.txt",
        "a/Thumbs.db",
        "a/none",
        "a/._1.jpg",
        "a/.DS_Store",
        "a/.git/x.jpg",
    )
    corpus = read_folder(touch(tmp_path, "stray.jpg", "README.md"))
    assert codes(corpus) == {
        "README.md": "unsupported_format",
        "a/.DS_Store": "hidden",
        "a/._1.jpg": "hidden",
        "a/.git": "hidden",
        "a/Thumbs.db": "unsupported_format",
        "a/none": "unsupported_format",
        "a/notes.txt": "unsupported_format",
        "stray.jpg": "no_label",
    }
    assert all(entry.reason and "\n" not in entry.reason for entry in corpus.skipped)


def test_links_are_followed_to_files_within_the_root_only(tmp_path: Path):
    outside = touch(tmp_path, "outside/secret.jpg") / "outside"
    root = touch(tmp_path / "root", "a/1.jpg", "b/2.jpg")
    for name, target in {
        "b/inside.jpg": "../a/1.jpg",
        "b/outside.jpg": outside / "secret.jpg",
        "b/prefix.jpg": tmp_path / "root-twin" / "1.jpg",
        "b/device.jpg": "/dev/zero",
        "b/dangling.jpg": "nowhere.jpg",
        "b/loop.jpg": "loop.jpg",
        "b/up": "..",
        "b/aside": "../a",
        "linked_label": "a",
        "outside_label": outside,
    }.items():
        (root / name).symlink_to(target)
    corpus = read_folder(root)
    assert paths(corpus) == ["a/1.jpg", "b/2.jpg", "b/inside.jpg"]
    assert codes(corpus) == {
        "b/aside": "linked_folder",
        "b/dangling.jpg": "not_found",
        "b/device.jpg": "outside_root",
        "b/loop.jpg": "not_found",
        "b/outside.jpg": "outside_root",
        "b/prefix.jpg": "outside_root",
        "b/up": "linked_folder",
        "linked_label": "linked_folder",
        "outside_label": "outside_root",
    }
    assert corpus.empty_labels == ()


def test_the_root_itself_may_be_a_link(tmp_path: Path):
    touch(tmp_path / "real", "a/1.jpg")
    (tmp_path / "real/a/2.jpg").symlink_to("1.jpg")
    (tmp_path / "link").symlink_to("real")
    assert paths(read_folder(tmp_path / "link")) == ["a/1.jpg", "a/2.jpg"]


def test_a_relative_root_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    touch(tmp_path / "root", "a/1.jpg")
    (tmp_path / "root/a/2.jpg").symlink_to("1.jpg")
    monkeypatch.chdir(tmp_path)
    corpus = read_folder("root")
    assert paths(corpus) == ["a/1.jpg", "a/2.jpg"]
    assert (corpus.root / corpus.items[0].path).is_file()


def test_names_that_are_not_utf8_survive_a_json_report(tmp_path: Path):
    corpus = read_folder(touch(tmp_path, "a/\udcff\udcfe.jpg", "a/line\nbreak.jpg", "b/<img onerror>.jpg"))
    report = json.dumps(paths(corpus)).encode("utf-8")
    assert json.loads(report) == paths(corpus)
    assert all((tmp_path / path).is_file() for path in json.loads(report))


def test_thin_corpora_are_visible_not_fatal(tmp_path: Path):
    touch(tmp_path, "full/1.jpg", "texts/notes.txt")
    (tmp_path / "empty\nfolder").mkdir()
    corpus = read_folder(tmp_path)
    assert corpus.empty_labels == ("empty\nfolder", "texts")
    assert [line.split(":")[0] for line in corpus.warnings] == [
        r"label 'empty\nfolder' has no images",
        "label 'texts' has no images",
        "the only label is 'full'",
    ]


def test_a_root_without_images_is_an_error(tmp_path: Path):
    touch(tmp_path, "file.jpg", "empty/a/notes.txt")
    for path, problem in {
        tmp_path / "missing": "no such folder",
        tmp_path / "file.jpg": "not a folder",
        tmp_path / "empty": "no image in it",
        tmp_path: "no image in it",
    }.items():
        with pytest.raises(CorpusError, match=problem) as caught:
            read_folder(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Root may read everything; a corpus is read by somebody else."""
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if was_root:
            os.seteuid(0)


@pytest.fixture
def open_path(tmp_path: Path) -> Path:
    """A temporary folder that every user may enter."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.owner() == tmp_path.owner() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    return tmp_path


def test_unreadable_folders_are_recorded(open_path: Path):
    root = touch(open_path, "a/1.jpg", "a/locked/2.jpg", "b/3.jpg")
    for name in ("a/locked", "b"):
        (root / name).chmod(0)
    with ordinary_user():
        corpus = read_folder(root)
    assert codes(corpus) == {"a/locked": "permission_denied", "b": "permission_denied"}
    assert (paths(corpus), corpus.empty_labels) == (["a/1.jpg"], ("b",))
    root.chmod(0)
    with ordinary_user(), pytest.raises(CorpusError, match="permissions"):
        read_folder(root)
    root.chmod(0o700)


# The hostile tree

PNG_NAMES = [
    *("good.png", "really-a-png.jpg", "UPPER.JPG", "-rf.png", "=1+1.png", "<img onerror=alert(1)>.png"),
    *(
        "\udcff\udcfe.png",
        "line\nbreak.png",
        "\u202egnp.png",
        "e\u0301.png",
        "\u00e9.png",
        "case.png",
        "CASE.png",
    ),
    *("n" * 251 + ".png", " .png", "tab\t.png", "quote'\".png", "back\\slash.png", "%2e%2e.png", "$(id).png"),
]
BAD_FILES = {
    "empty.jpg": b"",
    "one-byte.jpg": b"\xff",
    "page.jpg": b"<html>404</html>",
    "archive.jpg": b"PK\x03\x04" + bytes(60),
    "drawing.jpg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "script.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n",
    "bomb.gif": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b"," + bytes(20),
}
OTHER_NAMES = ["no-suffix", "Thumbs.db", "._x.jpg", ".hidden.jpg", "notes.txt", "movie.mp4"]


def build_hostile_tree(root: Path) -> Counter[str]:
    """Fill `root`; return how many entries there are of each fate: good, bad when opened, skipped."""
    label, fates = root / "rose", Counter()
    label.mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(label / "good.png")
    data = (label / "good.png").read_bytes()
    for name in PNG_NAMES:
        (label / name).write_bytes(data)
    for name, content in BAD_FILES.items():
        (label / name).write_bytes(content)
    with (label / "sparse.jpg").open("wb") as file:
        file.truncate(10 * 2**30)
    for name in OTHER_NAMES:
        (label / name).write_bytes(data)
    os.link(label / "good.png", label / "hard-link.png")
    os.mkfifo(label / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(label / "socket.jpg"))
    links = {
        "zero.jpg": "/dev/zero",
        "tty.jpg": "/dev/tty",
        "out.jpg": "/etc/passwd",
        "dangling.jpg": "nowhere",
    }
    links |= {"loop.jpg": "loop.jpg", "up": "..", "to-pipe.jpg": "pipe.jpg"}
    for name, target in links.items():
        (label / name).symlink_to(target)
    (root / "empty").mkdir()
    (root / "x.jpg").mkdir()
    (root / "x.jpg" / "only.png").write_bytes(data)
    (root / "stray.png").write_bytes(data)
    deepen(root / "deep", data)
    fates["good"] = len(PNG_NAMES) + 2
    fates["bad"] = len(BAD_FILES) + 1
    fates["skipped"] = len(OTHER_NAMES) + 2 + len(links) + 1
    return fates


def deepen(folder: Path, data: bytes) -> None:
    """Grow folders until their path is longer than the 4,096 bytes the kernel takes; an image at the end."""
    folder.mkdir()
    handle = os.open(folder, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=handle)
        deeper = os.open("d" * 250, os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = deeper
    file = os.open("deep.png", os.O_WRONLY | os.O_CREAT, dir_fd=handle)
    os.write(file, data)
    os.close(file)
    os.close(handle)


@pytest.mark.timeout(20)
def test_a_hostile_tree_is_read_to_the_end(tmp_path: Path):
    fates = build_hostile_tree(tmp_path / "root")
    corpus = read_folder(tmp_path / "root")
    assert {entry.code for entry in corpus.skipped} <= set(SKIP_CODES)
    too_deep = [entry for entry in corpus.skipped if entry.path.startswith("deep/")]
    assert [entry.code for entry in too_deep] == ["io_error"]
    assert len(corpus.skipped) == fates["skipped"] + len(too_deep)
    assert len(corpus.items) == fates["good"] + fates["bad"]
    opened, failed = [], Counter()
    for item in corpus.items:
        try:
            opened.append(load_image_file(corpus.root / item.path).image.size)
        except ImageError as error:
            failed[error.code] += 1
    assert opened == [(8, 8)] * fates["good"]
    assert failed == {"unsupported_format": 5, "too_many_bytes": 1, "empty_file": 1, "too_many_pixels": 1}
    assert corpus.empty_labels == ("deep", "empty")
    json.dumps([entry.path for entry in corpus.skipped]).encode()
