"""A folder of label folders -> Corpus. Only names are read here; no image is opened."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lmm_classifier.corpus.corpus import Corpus, CorpusItem, SkipCode, SkippedFile
from lmm_classifier.errors import CorpusError

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")

_REASONS: dict[SkipCode, str] = {
    "unsupported_format": f"the name ends with none of {' '.join(_SUFFIXES)}",
    "no_label": "it lies beside the label folders; move it into one",
    "hidden": "its name starts with a dot",
    "linked_folder": "a link to a folder inside the corpus; its images are read where they really are",
    "outside_root": "a link that leads out of the corpus",
    "not_found": "a broken or circular link, or gone since",
    "not_a_file": "a pipe, a socket or a device",
    "permission_denied": "this user may not look at it",
    "io_error": "the file system could not read it",
}


def read_folder(root: str | os.PathLike[str]) -> Corpus:
    """List the images below `root/<label>/`; folders inside a label folder belong to that label.

    Image files are told by their suffix, in any case. Links to files inside the root are followed,
    links to folders never, so no image appears under two labels by way of a loop. Items and skipped
    files are sorted by the bytes of their relative paths, whatever order the file system lists them in.

    Raises:
        CorpusError: the root is missing, unreadable or no folder, or holds not a single image.
    """
    root = Path(root)
    _check_root(root, "the folder that holds one folder per label")
    walk = _Walk(root)
    walk.run()
    labelled = [path for path in walk.images if "/" in path]
    for path in set(walk.images).difference(labelled):
        walk.skip(path, "no_label")
    if not labelled:
        raise CorpusError(
            f"{root}: no image in it ({len(walk.skipped)} other entries); put images into a folder per label"
        )
    items = tuple(CorpusItem(path, path.partition("/")[0]) for path in sorted(labelled, key=os.fsencode))
    return Corpus(
        items=items,
        skipped=walk.sorted_skips(),
        empty_labels=tuple(sorted(walk.labels - {item.label for item in items}, key=os.fsencode)),
        root=root,
    )


def list_images(root: str | os.PathLike[str]) -> tuple[tuple[str, ...], tuple[SkippedFile, ...]]:
    """All images below a folder, labelled or not, by the rules of `read_folder`.

    Returns:
        paths relative to the root, and what is no image; both sorted bytewise.

    Raises:
        CorpusError: the root is missing, unreadable or no folder.
    """
    root = Path(root)
    _check_root(root, "a folder of photos")
    walk = _Walk(root)
    walk.run()
    return tuple(sorted(walk.images, key=os.fsencode)), walk.sorted_skips()


def _check_root(root: Path, wanted: str) -> None:
    try:
        if not root.is_dir():
            problem = "is not a folder" if root.exists() else "there is no such folder"
            raise CorpusError(f"{root}: {problem}; give {wanted}")
        os.scandir(root).close()
    except OSError as error:
        raise CorpusError(
            f"{root}: the folder cannot be read ({error.strerror}); check its permissions"
        ) from error


class _Walk:
    """One pass over the tree, with a stack of its own: no depth of folders exhausts Python's."""

    def __init__(self, root: Path) -> None:
        self.images: list[str] = []
        self.skipped: list[SkippedFile] = []
        self.labels: set[str] = set()
        self._root = root
        self._real_root = root.resolve()
        self._folders = [""]  # relative paths still to be entered

    def run(self) -> None:
        while self._folders:
            folder = self._folders.pop()
            with self._recorded(folder), os.scandir(self._root / folder) as entries:
                for entry in entries:
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    with self._recorded(path):
                        self._visit(entry, path)

    @contextmanager
    def _recorded(self, path: str) -> Iterator[None]:
        """Record what the file system refuses as a skipped entry, and go on."""
        try:
            yield
        except PermissionError:
            self.skip(path, "permission_denied")
        except FileNotFoundError:
            self.skip(path, "not_found")
        except OSError:
            self.skip(path, "io_error")

    def _visit(self, entry: os.DirEntry[str], path: str) -> None:
        code = self._code(entry)
        if code is not None:
            self.skip(path, code)
        elif entry.is_dir(follow_symlinks=False):
            self._folders.append(path)
            if "/" not in path:
                self.labels.add(path)
        else:
            self.images.append(path)

    def _code(self, entry: os.DirEntry[str]) -> SkipCode | None:
        """Why this entry is neither an image nor a folder to enter, or None if it is."""
        if entry.name.startswith("."):
            return "hidden"
        if entry.is_symlink() and (code := self._link_code(entry)) is not None:
            return code
        if entry.is_dir(follow_symlinks=False):
            return None
        if not entry.is_file():
            return "not_a_file"
        if not entry.name.lower().endswith(_SUFFIXES):
            return "unsupported_format"
        return None

    def _link_code(self, entry: os.DirEntry[str]) -> SkipCode | None:
        # Not `entry.is_file()`: it tells a loop from a dangling link by raising, and neither from a folder.
        target = Path(os.path.realpath(entry.path))
        if not target.is_relative_to(self._real_root):
            return "outside_root"
        if target.is_symlink() or not target.exists():
            return "not_found"
        return "linked_folder" if target.is_dir() else None

    def skip(self, path: str, code: SkipCode) -> None:
        self.skipped.append(SkippedFile(path, code, _REASONS[code]))

    def sorted_skips(self) -> tuple[SkippedFile, ...]:
        return tuple(sorted(self.skipped, key=lambda entry: os.fsencode(entry.path)))
