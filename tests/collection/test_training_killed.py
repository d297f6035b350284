"""A training that is killed at any change of the disk leaves a store that answers."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from lmm_classifier import CollectionClassifier
from lmm_classifier.collection.store import BEST, Store
from lmm_classifier.collection.train import TrainOptions, train
from shell import python
from synthetic import COLOURS, picture
from training_sets import of_colour, trained

RED = picture(COLOURS["red"], seed=1000)

# What the child does: train, and die without any clean-up at the n-th call that changes the disk.
CHILD = """
import os, signal, sys
from pathlib import Path
from training_sets import of_colour, trained
from lmm_classifier.collection.train import TrainOptions
store, last = Path(sys.argv[1]), int(sys.argv[2])
sets = [of_colour("7", "blue"), of_colour("9")]
changes = 0
def hook(event, arguments):
    global changes
    if event == "open" and isinstance(arguments[2], int) and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
        return
    names = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")
    if event in names and str(store) in str(arguments[0]) and not str(arguments[0]).endswith(".lock"):
        changes += 1
        if changes == last:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
trained(store, *sets, options=TrainOptions(keep=1))
print(changes)
"""


def child(store: Path, last: int) -> subprocess.CompletedProcess[str]:
    return python("-c", CHILD, store, str(last))


def answers(store: Path) -> dict[str, bool | None]:
    return {a.collection: a.is_in_collection for a in CollectionClassifier(store).classify(RED)}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_every_change_of_the_disk(tmp_path: Path, step: int) -> None:
    """Collection 7 was red and is trained as blue, 8 stays, 9 is new."""
    former = tmp_path / "former"
    trained(former, of_colour("7"), of_colour("8"))
    shutil.copytree(former, tmp_path / "whole")
    total = int(child(tmp_path / "whole", 0).stdout)
    assert total > 15
    assert answers(tmp_path / "whole") == {"7": False, "8": True, "9": True}
    seen = set()
    for point in range(1, total + 1, step):
        store = tmp_path / f"{point}"
        shutil.copytree(former, store)
        killed = child(store, point)
        assert killed.returncode == -9, killed.stderr
        found = answers(store)
        seen.add(json.dumps(found))
        assert found in (
            {"7": True, "8": True},  # the former, whole
            {"7": False, "8": True},
            {"7": False, "8": True, "9": True},  # the new, whole
        )
        again = trained(store, of_colour("7", "blue"), of_colour("9"), options=TrainOptions(keep=1))
        assert len(again) == 2
        assert answers(store) == {"7": False, "8": True, "9": True}
        files = {p.name for p in store.iterdir()}
        assert not any(name.endswith(".tmp") for name in files)
        assert sum(name.endswith(".safetensors") for name in files) == 3  # nothing is left over
        shutil.rmtree(store)
    assert len(seen) == 3


class Disk:
    """Fails the n-th write, sync or rename below a folder, as the kernel would."""

    def __init__(self, folder: Path, fails_at: int, error: int) -> None:
        self.folder, self.fails_at, self.error = str(folder), fails_at, error
        self.count = 0

    def hit(self, path: object) -> None:
        if self.folder in str(path):
            self.count += 1
            if self.count == self.fails_at:
                raise OSError(self.error, os.strerror(self.error), str(path))

    def install(self, patch: pytest.MonkeyPatch) -> None:
        write_bytes, rename, fsync = Path.write_bytes, Path.replace, os.fsync
        patch.setattr(Path, "write_bytes", lambda path, data: self.hit(path) or write_bytes(path, data))
        patch.setattr(Path, "replace", lambda path, target: self.hit(path) or rename(path, target))
        patch.setattr(os, "fsync", lambda descriptor: self.hit(self.folder) or fsync(descriptor))


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_whatever_the_disk_refuses_the_former_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    former = tmp_path / "former"
    trained(former, of_colour("7"))
    point, failed = 0, True
    while failed:
        point += 1
        store = tmp_path / f"{point}"
        shutil.copytree(former, store)
        with monkeypatch.context() as patch:
            Disk(store, point, error).install(patch)
            report = train([of_colour("7", "blue")], store)
        failed = bool(report.skipped)
        if failed:
            assert os.strerror(error) in report.skipped[0].reason
        assert answers(store)["7"] in (True, False)
        assert not list(store.glob(".*.tmp"))
    assert point > 12
    assert Store(store).metadata(7)["name"] == "blue"
    assert (store / BEST).exists()
