"""Which text belongs to which photo, and what is never touched, by either way to the words."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

import pytest

from caption_server import CaptionServer
from lmm_classifier.captioning.folder import IN_A_ROW, Report, caption_folder, caption_names
from lmm_classifier.captioning.local import LocalModel
from lmm_classifier.captioning.source import CaptionFailure, CaptionSource, Keep, Outcome
from lmm_classifier.errors import CaptionError, CorpusError
from lmm_classifier.storage.progress import Progress
from lmm_classifier.text import printable
from photo_folders import texts, write_photos

SAYS = "a picture of 30 by 20 pixels"


def described(
    folder: Path, source: CaptionSource, force: bool = False
) -> tuple[tuple[int, int, int], dict[str, str]]:
    """Captions written, there and not made; and the reasons of the latter by the photos' names."""
    reasons: dict[str, str] = {}

    def note(photo: str, reason: str) -> None:
        reasons[Path(photo).name] = reason

    report = caption_folder(folder, source, force=force, on_failure=note)
    assert len(reasons) == report.failed
    return (report.written, report.present, report.failed), reasons


@pytest.mark.parametrize(
    ("images", "captions"),
    [
        ("a.jpg b.png", "a.txt b.txt"),
        ("a.jpg a.png", "a.jpg.txt a.png.txt"),
        ("a.jpg a.JPG", "a.jpg.txt a.JPG.txt"),
        ("A.jpg a.png", "A.jpg.txt a.png.txt"),
        ("a.jpg s/a.png S/a.png", "a.txt s/a.txt S/a.txt"),
        ("a.jpg a.jpg.png", "a.txt a.jpg.png.txt"),
        ("a.jpg a.png a.jpg.png", "a.jpg.txt a.png.txt a.jpg.png.txt"),
        ("a.jpg A.JPG.png", "a.txt A.JPG.png.txt"),
        ("a.txt.jpg a.jpg", "a.txt.txt a.txt"),
        ("\u00e4.jpg a\u0308.png", "\u00e4.jpg.txt a\u0308.png.txt"),
        ("stra\u00dfe.jpg STRASSE.png", "stra\u00dfe.jpg.txt STRASSE.png.txt"),
    ],
)
def test_no_two_photos_share_a_text(images: str, captions: str) -> None:
    """By hand; the order of the photos does not matter."""
    expected = dict(zip(images.split(), captions.split(), strict=True))
    for order in itertools.permutations(expected):
        assert caption_names(order) == expected
    assert len(set(expected.values())) == len(expected)


def test_the_same_files_again_however_many_have_been_described(tmp_path: Path, source: CaptionSource) -> None:
    folder = write_photos(tmp_path, "a.jpg", "a.png", "b.jpg")
    assert described(folder, source) == ((3, 0, 0), {})
    (folder / "a.png.txt").unlink()
    assert described(folder, source) == ((1, 2, 0), {})
    assert texts(folder) == {"a.jpg.txt": SAYS, "a.png.txt": SAYS, "b.txt": SAYS}


def test_odd_names(tmp_path: Path, source: CaptionSource, service: CaptionServer) -> None:
    names = ["mit leer.jpg", "straße 日本.png", "a;b 'c' $(d) %41.jpg", '"quoted".gif', "-f.jpg", "e..jpg"]
    names += ["line\nbreak.jpg", "\x1b[31mred.jpg", os.fsdecode(b"caf\xe9.jpg"), "n" * 251 + ".jpg"]
    folder = write_photos(tmp_path, *names)
    assert described(folder, source) == ((10, 0, 0), {})
    assert texts(folder) == {str(Path(name).with_suffix(".txt")): SAYS for name in names}
    if not isinstance(source, LocalModel):
        assert service.names == sorted(printable(name).replace('"', "%22") for name in names)


def test_a_name_too_long_for_its_caption_fails_alone(tmp_path: Path, source: CaptionSource) -> None:
    long = "n" * 251
    folder = write_photos(tmp_path, f"{long}.jpg", f"{long}.png", "a.jpg")
    counts, reasons = described(folder, source)
    assert counts == (1, 0, 2)
    assert all("File name too long" in reason for reason in reasons.values())
    assert texts(folder) == {"a.txt": SAYS}


def test_links_are_never_written_through(tmp_path: Path, source: CaptionSource) -> None:
    """A photo may be a link to another one here; a text is put beside it, and never where a link leads."""
    outside = write_photos(tmp_path / "outside", "far.jpg")
    (outside / "words.txt").write_text("not yours")
    (outside / "empty.txt").touch()
    folder = write_photos(tmp_path / "photos", "a.jpg", "b.jpg", "c.jpg", "d.jpg", "sub/real.jpg")
    links = {
        "a.txt": outside / "words.txt",
        "b.txt": outside / "empty.txt",
        "c.txt": outside / "new.txt",
        "linked.jpg": Path("sub/real.jpg"),
        "far.jpg": outside / "far.jpg",
        "folder": outside,
    }
    for name, target in links.items():
        (folder / name).symlink_to(target)
    (folder / "d.txt").mkdir()
    assert described(folder, source)[0] == (2, 1, 5)
    counts, reasons = described(folder, source, force=True)
    assert counts == (2, 0, 6)
    assert set(reasons) == {"a.jpg", "b.jpg", "c.jpg", "d.jpg", "far.jpg", "folder"}
    assert reasons["c.jpg"] == "c.txt is a link, a folder or a device; move it away"
    assert texts(outside) == {"words.txt": "not yours", "empty.txt": ""}
    assert {name: (folder / name).readlink() for name in links} == links
    assert not (folder / "linked.txt").is_symlink()
    assert (folder / "linked.txt").read_text() == (folder / "sub/real.txt").read_text() == SAYS


def photos_of(folder: Path) -> Mapping[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".txt"}


def test_no_photo_is_ever_changed(tmp_path: Path, source: CaptionSource) -> None:
    names = ["a.jpg", "a.png", "a.jpg.gif", "b.txt.jpg", "b.jpg", "c.TXT.png"]
    folder = write_photos(tmp_path, *names)
    before = photos_of(folder)
    assert described(folder, source, force=True) == ((6, 0, 0), {})
    assert photos_of(folder) == before
    expected = ["a.jpg", "a.png", "a.jpg.gif", "b.txt", "b", "c.TXT"]
    assert texts(folder) == {f"{name}.txt": SAYS for name in expected}


class Scripted:
    """Says the same of every photo, or fails as it is told to; may act while it is at one."""

    def __init__(self, *script: str | CaptionFailure, meanwhile: dict[str, Path] | None = None) -> None:
        self.script, self.meanwhile, self.checked = script, meanwhile or {}, 0

    def check(self) -> None:
        self.checked += 1

    def outcomes(self, photos: Sequence[Path], keep: Keep) -> Generator[Outcome, None, None]:
        for photo, said in zip(photos, itertools.cycle(self.script), strict=False):
            if photo.name in self.meanwhile:
                self.meanwhile[photo.name].write_text("by hand")
            yield said if isinstance(said, CaptionFailure) else keep(photo, said)


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("two\nlines\r\n and\ttabs ", "two lines and tabs"),
        ("\x1b[31mred\x1b[0m\x00\x7f\x85 \u2028end", "[31mred [0m end"),
        ("\ufeffmarked \u202ebackwards\u202c and\u200b split", "marked backwards and split"),
        ("half a \ud83d pair", "half a pair"),
        ("क\u094d\u200dष 👩\u200d🚀", "क\u094d\u200dष 👩\u200d🚀"),  # joined letters, a joined picture
        ("\u00a0wide\u3000space\u00a0", "wide space"),
    ],
)
def test_a_caption_is_one_clean_line(tmp_path: Path, said: str, kept: str) -> None:
    folder = write_photos(tmp_path, "a.jpg")
    assert caption_folder(folder, Scripted(said)).written == 1
    assert (folder / "a.txt").read_bytes() == kept.encode()


def test_where_there_is_nothing_to_do_nobody_is_asked(tmp_path: Path) -> None:
    folder = write_photos(tmp_path, "a.jpg")
    (folder / "a.txt").write_text("there")
    source = Scripted("words")
    assert caption_folder(folder, source) == Report(0, 1, 0, {})
    assert source.checked == 0
    (tmp_path / "sub").mkdir()
    with pytest.raises(CorpusError, match="there is no photo in it"):
        caption_folder(tmp_path / "sub", source)


def test_a_text_that_a_person_writes_meanwhile_is_theirs(tmp_path: Path) -> None:
    folder = write_photos(tmp_path, "a.jpg", "b.jpg")
    source = Scripted("words", meanwhile={"b.jpg": folder / "b.txt"})
    counts, reasons = described(folder, source)
    assert (counts, texts(folder)) == ((1, 0, 1), {"a.txt": "words", "b.txt": "by hand"})
    assert reasons == {"b.jpg": "b.txt came to be while the photo was described, and is left"}


def test_failures_in_a_row_end_it_unless_the_photos_are_what_is_wrong(tmp_path: Path) -> None:
    folder = write_photos(tmp_path, *(f"{n:02}.jpg" for n in range(3 * IN_A_ROW)))
    broken, late = CaptionFailure("broken", its_own=True), CaptionFailure("late")
    assert described(folder, Scripted(broken))[0] == (0, 0, 3 * IN_A_ROW)
    assert described(folder, Scripted("words", *[late] * (IN_A_ROW - 1)), force=True)[0][2] == 27
    for script in ((late,), (late, broken), ("",)):
        told: list[str] = []
        with pytest.raises(CaptionError, match=f"{IN_A_ROW} photos in a row .*; 0 captions are written"):
            caption_folder(
                folder, Scripted(*script), force=True, on_failure=lambda p, r, told=told: told.append(p)
            )
        assert len(told) == (2 * IN_A_ROW - 1 if broken in script else IN_A_ROW)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_takes_no_more(tmp_path: Path, error: int, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_photos(tmp_path, *(f"{n:02}.jpg" for n in range(30)))
    (folder / "00.txt").write_text("former")
    fsync, calls = os.fsync, itertools.count(1)

    def full(descriptor: int) -> None:
        if next(calls) > 10:  # two for each file: of itself and of its folder
            raise OSError(error, os.strerror(error))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CaptionError, match=f"{os.strerror(error)}; 5 captions are written"):
        caption_folder(folder, Scripted("words"), force=True)
    assert texts(folder) == {f"{n:02}.txt": "words" for n in range(5)}


def test_progress_counts_what_there_is_to_do(tmp_path: Path, source: CaptionSource) -> None:
    folder = write_photos(tmp_path, "a.jpg", "b.jpg", "c.jpg", "d.jpg")
    (folder / "a.txt").write_text("there")
    (folder / "c.jpg").write_bytes(b"no photo")
    seen: list[Progress] = []
    caption_folder(folder, source, on_progress=seen.append)
    assert seen == [Progress("captioning", n, 3, int(n > 1)) for n in (1, 2, 3)]


# What the child does: describe, and die without any clean-up at the n-th call that changes the disk.
CHILD = """
import os, signal, sys
from pathlib import Path
from lmm_classifier.captioning.folder import caption_folder
from lmm_classifier.captioning.local import LocalModel
folder, last = Path(sys.argv[1]), int(sys.argv[2])
changes = 0
def hook(event, arguments):
    global changes
    if event == "open" and isinstance(arguments[2], int) and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
        return
    if event in ("open", "os.rename", "os.remove") and str(folder) in str(arguments[0]):
        changes += 1
        if changes == last:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
caption_folder(folder, LocalModel.named("fake", 50), force=True)
"""


def test_killed_at_every_change_of_the_disk_each_text_is_whole(tmp_path: Path) -> None:
    """It is the former one or the new one; and what is missing is made the next time."""
    seen = set()
    for point in itertools.count(1):
        folder = write_photos(tmp_path / f"{point}", "a.jpg", "b.jpg")
        (folder / "a.txt").write_text("former words")
        command = [sys.executable, "-c", CHILD, str(folder), str(point)]
        code = subprocess.run(command, capture_output=True, check=False).returncode
        found = {name: text for name, text in texts(folder).items() if not name.startswith(".")}
        assert set(found.values()) <= {"former words", SAYS}
        seen.add(tuple(found.values()))
        assert described(folder, LocalModel.named("fake", 50), force=True)[0] == (2, 0, 0)
        if not code:
            break
        assert code == -9
    assert point == 2 * 4 + 1  # each is written, synchronised, renamed, and its temporary name is let go
    assert seen == {("former words",), (SAYS,), (SAYS, SAYS)}
