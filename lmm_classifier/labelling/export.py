"""Labelled photos as others take them: a folder per label, a table, or the Hugging Face `imagefolder`."""

from __future__ import annotations

import csv
import filecmp
import io
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lmm_classifier.corpus.corpus import CorpusItem
from lmm_classifier.errors import ConfigError
from lmm_classifier.labelling.agreed_labels import AgreedLabels
from lmm_classifier.labelling.run_schema import as_text
from lmm_classifier.storage.atomic_files import explained, replace_file, replace_large_file

Way = Literal["copy", "link"]
_METADATA = "metadata.jsonl"
_LONGEST_NAME = 255  # bytes of a folder's name
_DIGITS = 12  # hex digits of a photo's digest that tell it from another of the same name


def write_tree(accepted: AgreedLabels, root: Path, way: Way) -> int:
    """Put each photo into root/<label>/, where no file is ever replaced.

    A photo whose bytes lie under its name there already stays as it is; one whose name another photo has
    gets the beginning of its digest into its name.

    Args:
        accepted: the photos.
        root: made if missing.
        way: "copy", or "link": a hard link, for which both must lie on one file system.

    Returns:
        how many were added.

    Raises:
        ConfigError: a label can be no folder, or the photos cannot be linked.
        IndexFolderError: the disk refuses.
    """
    for label in {item.label for item in accepted.items}:
        _check_folder(label)
    return sum(
        _place(item, sha256, root / item.label, way)[1]
        for item, sha256 in zip(accepted.items, accepted.sha256, strict=True)
    )


def write_csv(accepted: AgreedLabels, path: Path) -> None:
    """Write a table of path, label and SHA-256, which `index build` reads.

    Raises:
        ConfigError: there is a file already; or a name is no UTF-8, and so cannot stand in a table.
        IndexFolderError: it cannot be written.
    """
    if path.exists():
        raise ConfigError(f"{path} is there already; give --csv a new file")
    for item in accepted.items:
        _check_text(item.path)
        _check_text(item.label)
    text = io.StringIO(newline="")
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(("path", "label", "sha256"))
    for item, sha256 in zip(accepted.items, accepted.sha256, strict=True):
        lines.writerow((item.path, item.label, sha256))
    replace_file(path, text.getvalue().encode())


def write_imagefolder(accepted: AgreedLabels, folder: Path, way: Way) -> int:
    """Put the photos into folder/photos and say what they show in folder/metadata.jsonl.

    `datasets.load_dataset("imagefolder", data_dir=folder)` gives them with the column `label`, of texts. What
    the file says of other photos stays.

    Returns:
        how many were added.

    Raises:
        ConfigError: the file gives one of the photos another label, or is none; or as `write_tree`.
        IndexFolderError: as `write_tree`.
    """
    lines, added = _metadata(folder / _METADATA), 0
    said = {str(line.get("sha256")): line.get("label") for line in lines.values()}
    for item, sha256 in zip(accepted.items, accepted.sha256, strict=True):
        before, now = said.get(sha256), as_text(item.label)
        if before is not None and before != now:
            raise ConfigError(
                f"{folder / _METADATA} calls {item.path} {before!r}, the review {now!r}: mend one of them"
            )
    for item, sha256 in zip(accepted.items, accepted.sha256, strict=True):
        place, new = _place(item, sha256, folder / "photos", way, named=f"{sha256[:_DIGITS]}")
        name = f"photos/{place.name}"
        lines[name] = {"file_name": name, "label": as_text(item.label), "sha256": sha256}
        added += new
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines.values())
    replace_file(folder / _METADATA, text.encode())
    return added


def _metadata(path: Path) -> dict[str, dict[str, Any]]:
    """The lines of a metadata.jsonl by the files they are about; none where there is no such file."""
    try:
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
        return {line["file_name"]: line for line in lines}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{path} is no metadata of an imagefolder; give --imagefolder a new folder"
        ) from error


def _place(
    item: CorpusItem, sha256: str, folder: Path, way: Way, named: str | None = None
) -> tuple[Path, bool]:
    """Where a photo lies in a folder, and whether it was put there now."""
    source = Path(item.path)
    place = folder / (source.name if named is None else named + source.suffix)
    if place.exists() and not _same(place, source):
        place = folder / f"{source.stem}-{sha256[:_DIGITS]}{source.suffix}"
    if place.exists():
        return place, False
    folder.mkdir(parents=True, exist_ok=True)
    put: Callable[[], object] = partial(_link, source, place)
    if way == "copy":
        put = partial(replace_large_file, place, partial(shutil.copyfile, source), 0)
    with explained(place):
        put()
    return place, True


def _link(source: Path, place: Path) -> None:
    """Hard links: one that is symbolic and leads out of a corpus is not followed when it is read."""
    try:
        os.link(source, place)
    except OSError as error:
        raise ConfigError(f"cannot link {source} to {place}: {error.strerror}; use --copy") from error


def _same(place: Path, source: Path) -> bool:
    """Whether what lies there is the photo."""
    return place.is_file() and filecmp.cmp(place, source, shallow=False)


def _check_folder(label: str) -> None:
    too_long = len(os.fsencode(label)) > _LONGEST_NAME
    if too_long or label.startswith(".") or set(label) & {"/", "\0"} or not label.strip():
        raise ConfigError(f"label {label!r} can be no folder: relabel its photos, or export a table")


def _check_text(name: str) -> None:
    if as_text(name) != name:
        raise ConfigError(f"{as_text(name)} is no UTF-8 and cannot stand in a table: use --tree")
