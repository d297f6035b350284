"""A folder of photos -> a text file beside each."""

from __future__ import annotations

import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lmm_classifier.captioning.source import CaptionFailure, CaptionSource, Outcome
from lmm_classifier.corpus.corpus import NO_PHOTOS
from lmm_classifier.corpus.folder import list_images
from lmm_classifier.errors import CaptionError, CorpusError, IndexFolderError
from lmm_classifier.storage.atomic_files import replace_file
from lmm_classifier.storage.progress import OnProgress, Progress, ignore_progress
from lmm_classifier.text import plain_line

IN_A_ROW = 10
"""Failures, none of them a photo's own, after which the rest is not tried."""

_OnFailure = Callable[[str, str], None]  # of which photo, and why


@dataclass(frozen=True, slots=True)
class Report:
    """What became of the photos of a folder.

    Attributes:
        written: captions made now.
        present: captions that were there.
        failed: photos that have none.
        renamed: photo -> caption, where it has the photo's full name.
    """

    written: int
    present: int
    failed: int
    renamed: dict[str, str]


def caption_folder(
    root: Path,
    source: CaptionSource,
    *,
    force: bool = False,
    on_failure: _OnFailure = lambda _photo, _reason: None,
    on_progress: OnProgress = ignore_progress,
) -> Report:
    """Write what each photo below a folder shows into a text file beside it, as one line of UTF-8.

    `caption_names` says how the files are called. Each is there wholly or not at all, as soon as its photo
    has been described: who stops this and calls it again goes on where it was.

    Args:
        root: the folder.
        source: puts photos into words; it is not asked for anything if there is nothing to do.
        force: make captions anew that are there and not empty.
        on_failure: told of each photo that gets no caption.
        on_progress: told where things stand.

    Raises:
        CorpusError: the folder cannot be read, or holds no photo.
        CaptionError: `IN_A_ROW` photos failed for what is no fault of theirs.
        LmmClassifierError: the source cannot put any photo into words.
    """
    images, skipped = list_images(root)
    names = caption_names(images)
    captions = set(names.values())  # one that is a broken link, say: what is told is that its photo has none
    refused = [e for e in skipped if e.code not in NO_PHOTOS and e.path not in captions]
    if not images and not refused:
        raise CorpusError(f"{root}: there is no photo in it")
    work = _Work({root / image: root / name for image, name in names.items()}, force, on_failure)
    for entry in refused:
        work.fails(root / entry.path, CaptionFailure(f"{entry.reason} [{entry.code}]", its_own=True))
    todo = work.todo()
    if todo:
        source.check()
        with closing(source.outcomes(todo, work.keep)) as outcomes:
            for done, (photo, outcome) in enumerate(zip(todo, outcomes, strict=True), start=1):
                work.take(photo, outcome)
                on_progress(Progress("captioning", done, len(todo), work.failed))
    renamed = {image: name for image, name in names.items() if _is_full_name(image, name)}
    return Report(work.written, work.present, work.failed, renamed)


def caption_names(images: Sequence[str]) -> dict[str, str]:
    """Where the caption of each photo goes, which depends on the names of the photos alone.

    That of `a.jpg` is `a.txt`. Photos of one folder with the same stem keep their full names instead, as in
    `a.jpg.txt` and `a.png.txt`; so does one whose stem is the name of another, such as `a.jpg.png` beside
    `a.jpg`. Thus no two share a file. Names that differ only in case, or in how a letter is composed, count
    as the same: there are file systems that hold them to be.

    Args:
        images: paths with "/" between the parts.

    Returns:
        image -> path of its caption, in the order of the images.
    """
    paths = {image: PurePosixPath(image) for image in images}
    stems = Counter((path.parent, _folded(path.stem)) for path in paths.values())
    names = {(path.parent, _folded(path.name)) for path in paths.values()}
    found = {}
    for image, path in paths.items():
        key = path.parent, _folded(path.stem)
        shared = stems[key] > 1 or key in names
        found[image] = str(path.parent / f"{path.name if shared else path.stem}.txt")
    return found


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _is_full_name(image: str, caption: str) -> bool:
    return caption == f"{image}.txt"


class _Work:
    """Photos, their captions, and how far things are.

    Args:
        files: photo -> its caption.
        force: as for `caption_folder`.
        on_failure: as for `caption_folder`.
    """

    def __init__(self, files: dict[Path, Path], force: bool, on_failure: _OnFailure) -> None:
        self.written = self.present = self.failed = 0
        self._files, self._force, self._on_failure = files, force, on_failure
        self._in_a_row = 0

    def todo(self) -> list[Path]:
        """The photos that want a caption, and whose caption can be put where it belongs."""
        wanted = []
        for photo, file in self._files.items():
            standing = _standing(file, self._force)
            if isinstance(standing, CaptionFailure):
                self.fails(photo, standing)
            elif standing:
                self.present += 1
            else:
                wanted.append(photo)
        return wanted

    def keep(self, photo: Path, text: str) -> Outcome:
        """Write the caption of a photo; in any thread."""
        line, file = plain_line(text), self._files[photo]
        if not line:
            return CaptionFailure("the caption is empty")
        standing = _standing(file, self._force)  # a look again: a person may have written it meanwhile
        if isinstance(standing, CaptionFailure):
            return standing
        if standing:
            return CaptionFailure(
                f"{file.name} came to be while the photo was described, and is left", its_own=True
            )
        try:
            replace_file(file, line.encode())
        except IndexFolderError as error:
            return CaptionFailure(str(error))
        return None

    def take(self, photo: Path, outcome: Outcome) -> None:
        """Note what became of a photo.

        Raises:
            CaptionError: too many in a row have failed.
        """
        if outcome is None:
            self.written += 1
            self._in_a_row = 0
            return
        self.fails(photo, outcome)
        self._in_a_row += not outcome.its_own
        if self._in_a_row == IN_A_ROW:
            raise CaptionError(
                f"{IN_A_ROW} photos in a row could not be described, the last of them for this reason: "
                f"{outcome.reason}; {self.written} captions are written, the rest is not tried"
            )

    def fails(self, photo: Path, failure: CaptionFailure) -> None:
        self.failed += 1
        self._on_failure(str(photo), failure.reason)


def _standing(file: Path, force: bool) -> bool | CaptionFailure:
    """Whether a caption is there that is to stay; or why none can be put there.

    Nothing but a regular file is ever replaced, and no link is followed to write.
    """
    try:
        status = file.lstat()
        if stat.S_ISREG(status.st_mode):
            return status.st_size > 0 and not force
        if stat.S_ISLNK(status.st_mode) and not force and file.is_file() and file.stat().st_size:
            return True
    except FileNotFoundError:
        return False
    except OSError as error:
        return CaptionFailure(f"{file.name} cannot be looked at: {error.strerror}", its_own=True)
    return CaptionFailure(f"{file.name} is a link, a folder or a device; move it away", its_own=True)
