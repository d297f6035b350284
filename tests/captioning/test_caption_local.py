"""Captions by a model of this process."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest
from PIL import Image

from lmm_classifier.captioning.folder import caption_folder
from lmm_classifier.captioning.local import LocalModel
from lmm_classifier.errors import CaptionError, ConfigError, ModelError
from lmm_classifier.models.captioning import captioned
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.registry import BUILTINS, Entry
from photo_folders import texts, write_photos
from tiny_vision import write_blip


class Moody:
    """Fails at photos of one width, whatever is shown beside them; counts the calls of each size."""

    calls: ClassVar[list[int]] = []

    def __init__(self, spec: ModelSpec) -> None:
        self._hated = int(spec.weights)

    def captions(self, images: Sequence[Image.Image], prompt: str | None, max_length: int) -> list[str]:
        self.calls.append(len(images))
        if any(image.width == self._hated for image in images):
            raise ValueError("out of cheese")
        return [f"{image.width} wide, {max_length} at most" for image in images]


@pytest.fixture
def moody(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    monkeypatch.setitem(BUILTINS["captioner"], "moody", Entry(f"{__name__}:Moody"))
    monkeypatch.setattr(Moody, "calls", [])
    return Moody.calls


def test_a_photo_that_the_model_fails_at_costs_the_others_nothing(tmp_path: Path, moody: list[int]) -> None:
    for n in range(20):
        write_photos(tmp_path, f"{n:02}.png", size=(100 + n, 5))
    told: list[tuple[str, str]] = []
    report = caption_folder(
        tmp_path, LocalModel.named("moody=103", 7), on_failure=lambda *why: told.append(why)
    )
    assert (report.written, report.failed) == (19, 1)
    assert texts(tmp_path) == {f"{n:02}.txt": f"{100 + n} wide, 7 at most" for n in range(20) if n != 3}
    [(photo, reason)] = told
    assert photo == str(tmp_path / "03.png")
    assert reason == "captioner 'moody' failed: ValueError: out of cheese"
    assert moody == [8, *[1] * 8, 8, 4]  # in batches but for the one with the photo


def test_a_model_that_fails_at_everything_is_left(tmp_path: Path) -> None:
    write_photos(tmp_path, *(f"{n:02}.png" for n in range(40)))
    with pytest.raises(CaptionError, match="the fake captioner was told to fail; 0 captions are written"):
        caption_folder(tmp_path, LocalModel.named("fake=fails", 50))
    assert texts(tmp_path) == {}


def test_a_model_that_cannot_be_opened_is_said_before_a_photo_is(tmp_path: Path) -> None:
    write_photos(tmp_path, "a.png")
    told: list[str] = []
    with pytest.raises(ModelError, match="nowhere"):
        caption_folder(
            tmp_path, LocalModel.named("blip=./nowhere", 50), on_failure=lambda *why: told.extend(why)
        )
    assert told == []
    with pytest.raises(ConfigError, match="unknown captioner 'blib'; did you mean 'blip'"):
        LocalModel.named("blib", 50)
    with pytest.raises(ConfigError, match="max_length"):
        LocalModel.named("fake", 2000)


def test_photos_are_read_ahead_while_the_model_works(tmp_path: Path, moody: list[int]) -> None:
    """Those of the next batch are gone when the first is described, and are described all the same."""
    write_photos(tmp_path, *(f"{n:02}.png" for n in range(12)))
    photos = sorted(tmp_path.glob("*.png"))
    kept: list[str] = []
    opened = threading.Event()

    def keep(photo: Path, text: str) -> None:
        if not opened.is_set():
            opened.wait(0.3)
            for each in photos:
                each.unlink()
            opened.set()
        kept.append(photo.name)

    assert list(LocalModel.named("moody=1", 5).outcomes(photos, keep)) == [None] * 12
    assert kept == [photo.name for photo in photos]


def test_blip_says_of_a_photo_in_a_batch_what_it_says_of_it_alone(tmp_path: Path) -> None:
    weights = write_blip(tmp_path / "blip")
    expected = {}
    (tmp_path / "photos").mkdir()
    for n in range(20):
        image = Image.new("RGB", (20 + n, 30), (12 * n, 255 - 12 * n, 90))
        image.save(tmp_path / f"photos/{n:02}.png")
        [expected[f"{n:02}.txt"]] = captioned(ModelSpec("blip", weights), [image], None, 8, 1)
    report = caption_folder(tmp_path / "photos", LocalModel.named(f"blip={weights}", 8))
    assert texts(tmp_path / "photos") == {name: text for name, text in expected.items() if text}
    assert report.written + report.failed == 20
    assert len(set(expected.values())) > 1
