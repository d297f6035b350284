"""What a disk, a power cut or another program can do to a build while it runs."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lmm_classifier.api.build_index import build_index
from lmm_classifier.corpus.source import read_corpus
from lmm_classifier.errors import IndexFolderError
from lmm_classifier.index.build import BuildOptions, write_index
from lmm_classifier.index.publish import SearchOptions
from lmm_classifier.index.search import open_index
from lmm_classifier.index.update import add_to_index
from lmm_classifier.models.loading import load_encoder
from lmm_classifier.models.spec import ModelSpec
from synthetic import COLOURS, Disturbed, picture, write_corpus

FAKE = ModelSpec("fake")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmm_classifier.index.build.SHARD_ROWS", 5)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def build(corpus: Path, output: Path, **options: bool) -> None:
    build_index(corpus, output, encoder=FAKE, batch_size=2, **options)


class Disk:
    """Fails the n-th operation that changes something below a folder, as the kernel would."""

    def __init__(self) -> None:
        self.folder = ""
        self.fails_at = self.count = 0
        self.error = 0

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.folder:
            return
        if event == "open":
            path, _, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
            if not writes or self.folder not in str(path) or str(path).endswith("lock"):
                return
            if Path(str(path)).is_dir():
                return  # filelock asks whether the file system has files without a name, and can do without
        elif event not in ("os.rename", "os.mkdir") or self.folder not in str(arguments[0]):
            return
        elif event == "os.mkdir" and Path(str(arguments[0])).is_dir():
            return  # not a change: the answer is that it exists
        self.hit()

    def hit(self) -> None:
        if self.folder:
            self.count += 1
            if self.count == self.fails_at:
                raise OSError(self.error, os.strerror(self.error))


@pytest.fixture(scope="module")
def hook() -> Disk:
    disk = Disk()
    sys.addaudithook(disk)  # for the life of the process; idle unless a folder is set
    return disk


@pytest.fixture
def disk(hook: Disk, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    real_fsync, real_write = os.fsync, Path.write_bytes

    def fsync(descriptor: int) -> None:
        hook.hit()
        real_fsync(descriptor)

    def write_bytes(self: Path, data: bytes) -> int:
        if hook.folder and hook.folder in str(self) and hook.count + 1 == hook.fails_at:
            real_write(self, data[: len(data) // 2])  # a short write, then the error
        hook.hit()
        return real_write(self, data)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    yield hook
    hook.folder = ""


@pytest.mark.parametrize(
    ("error", "step"), [(errno.ENOSPC, 1), (errno.EIO, 5), (errno.EACCES, 7), (errno.EMFILE, 7)]
)
def test_whatever_the_disk_refuses_is_said_and_survived(
    disk: Disk, tmp_path: Path, error: int, step: int
) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    build(corpus, tmp_path / "former/index")
    picture(COLOURS["red"], seed=777).save(corpus / "red/3.png")
    build(corpus, tmp_path / "undisturbed/index")
    expected = tree(tmp_path / "undisturbed")
    output = tmp_path / "out/index"
    shutil.copytree(tmp_path / "former", output.parent)
    disk.error, disk.fails_at, disk.count, disk.folder = error, 0, 0, str(output.parent)
    build(corpus, output)
    points, disk.folder = disk.count, ""
    assert points > 40
    for point in range(1, points, step):
        shutil.rmtree(output.parent)
        if point % 2:
            shutil.copytree(tmp_path / "former", output.parent)
        disk.fails_at, disk.count, disk.folder = point, 0, str(output.parent)
        with pytest.raises(IndexFolderError, match=os.strerror(error)) as failure:
            build(corpus, output)
        disk.folder = ""
        assert str(output.parent) in str(failure.value)
        if (output / "manifest.json").exists():
            assert len(open_index(output)) == 18
        build(corpus, output)
        assert tree(output.parent) == expected, point


class Order:
    """Notes what reaches the disk in which order, below a folder."""

    def __init__(self) -> None:
        self.folder = ""
        self.events: list[tuple[str, str]] = []

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.folder and event == "os.rename" and self.folder in str(arguments[0]):
            self.events += [("rename", str(arguments[0])), ("to", str(arguments[1]))]


@pytest.fixture(scope="module")
def order_hook() -> Order:
    order = Order()
    sys.addaudithook(order)
    return order


def test_nothing_gets_its_name_before_it_is_on_the_disk(
    order_hook: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        order_hook.events.append(("fsync", str(Path(f"/proc/self/fd/{descriptor}").readlink())))

    monkeypatch.setattr(os, "fsync", fsync)
    corpus = write_corpus(tmp_path / "corpus", per_label=10)
    order_hook.folder = str(tmp_path)
    try:
        build_index(corpus, tmp_path / "index", encoder=FAKE, search=SearchOptions(factory="HNSW8"))
    finally:
        order_hook.folder = ""
    events = order_hook.events
    renamed = [i for i, (what, _) in enumerate(events) if what == "rename"]
    assert len(renamed) > 10
    for i in renamed[:-1]:  # every file: synced, renamed, and its folder synced
        source, target = events[i][1], events[i + 1][1]
        assert events[i - 1] == ("fsync", source)
        assert events[i + 2] == ("fsync", str(Path(target).parent))
    *files, published = [events[i + 1][1] for i in renamed]
    assert files[-1].endswith("index/manifest.json")
    assert published == str(tmp_path / "index")
    last = renamed[-1]
    assert {path for _, path in events[last - 2 : last]} == {  # what the folder holds, before it moves
        str(tmp_path / ".index.partial/index/shards"),
        str(tmp_path / ".index.partial/index"),
    }
    assert events[last + 2] == ("fsync", str(tmp_path))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root can mount a file system of its own")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_is_really_full(small_disk: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", per_label=20)
    build_index(corpus, small_disk / "index", encoder=FAKE)
    filler = small_disk / "filler"
    free = shutil.disk_usage(small_disk).free
    filler.write_bytes(bytes(max(free - 12 * 1024, 0)))
    picture(COLOURS["red"], seed=777).save(corpus / "red/3.png")
    with pytest.raises(IndexFolderError, match="No space left on device"):
        build_index(corpus, small_disk / "index", encoder=FAKE)
    assert len(open_index(small_disk / "index")) == 60
    filler.unlink()
    build_index(corpus, small_disk / "index", encoder=FAKE)
    build_index(corpus, tmp_path / "fresh", encoder=FAKE)
    assert tree(small_disk / "index") == tree(tmp_path / "fresh")


def test_a_folder_that_may_not_be_written() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        folder = Path(name)
        folder.chmod(0o755)
        write_corpus(folder / "corpus")
        (folder / "closed").mkdir(mode=0o555)
        load_encoder(FAKE)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65534)  # nobody: for root, every folder is open
            with pytest.raises(IndexFolderError) as failure:
                build_index(folder / "corpus", folder / "closed/index", encoder=FAKE)
        finally:
            os.seteuid(user)
        assert str(failure.value) == f"cannot write {folder}/closed/index: Permission denied"
        assert list((folder / "closed").iterdir()) == []


def test_photos_that_change_vanish_and_come_while_the_build_runs(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", per_label=100)
    encoder = load_encoder(FAKE)
    rng = np.random.default_rng(3)
    photos = sorted(corpus.rglob("*.png"))
    chosen = [photos[i] for i in rng.permutation(len(photos))]
    versions: dict[str, np.ndarray] = {}  # SHA-256 of every content there ever was -> its vector
    pending = [*[("change", p) for p in chosen[:50]], *[("remove", p) for p in chosen[50:70]]]
    pending += [("add", corpus / f"red/added{i}.png") for i in range(20)]
    touched = {path.relative_to(corpus).as_posix() for what, path in pending if what != "add"}

    def remember(path: Path) -> None:
        with Image.open(path) as image:
            versions[hashlib.sha256(path.read_bytes()).hexdigest()] = encoder.encode([image])[0]

    def meddles(images: list[Image.Image]) -> np.ndarray:
        for what, path in [pending.pop() for _ in range(min(2, len(pending)))]:
            if what == "remove":
                path.unlink()
            else:
                picture(COLOURS["red"], seed=5000 + len(pending)).save(path)
                remember(path)
        return encoder.encode(images)

    for path in photos:
        remember(path)
    report = write_index(
        read_corpus(corpus),
        [Disturbed(encoder.contract, meddles)],
        tmp_path / "index",
        BuildOptions(batch_size=5, max_bad_ratio=1),
    )
    assert not pending
    index = open_index(tmp_path / "index")
    for row, record in enumerate(index.records):  # each vector is that of the very bytes it is filed under
        vector = index.vectors.take(np.asarray([row]))[0]
        np.testing.assert_allclose(vector, versions[record.sha256], atol=1e-6)
    stored = dict(zip(index.records.paths(), index.records.sha256(), strict=True))
    told = set(report.changed) | {skip.path for skip in report.skipped}
    for path in touched:  # what is not told was read in the state it is in now
        now = corpus / path
        assert path in told or stored[path] == hashlib.sha256(now.read_bytes()).hexdigest(), path
    build(corpus, tmp_path / "index")
    build(corpus, tmp_path / "fresh")
    assert tree(tmp_path / "index") == tree(tmp_path / "fresh")
    assert len(open_index(tmp_path / "index")) == 300


def test_an_addition_that_is_killed_leaves_the_former_index(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    build(corpus, tmp_path / "index")
    before = tree(tmp_path / "index")
    encoder = load_encoder(FAKE)
    more = write_corpus(tmp_path / "more", seed=4000)
    for path in sorted(more.rglob("*.png")):
        path.rename(path.with_name(f"n{path.name}"))

    def dies(images: list[Image.Image]) -> np.ndarray:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add_to_index(tmp_path / "index", read_corpus(more), [Disturbed(encoder.contract, dies)])
    assert tree(tmp_path / "index") == before
    report = add_to_index(tmp_path / "index", read_corpus(more), [encoder])
    assert (report.indexed, report.encoded) == (36, 18)
    assert not list(tmp_path.glob(".index*"))
