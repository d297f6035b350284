from __future__ import annotations

import hashlib
import io
import os
import pickle
import socket
import struct
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile
from specimens import SIX_FORMATS, code_of, encoded, noise, png_header

from lmm_classifier.corpus.images import load_image_file, open_image, read_image_bytes
from lmm_classifier.errors import ImageError

# A JPEG tag block whose only tag claims a million bytes: Pillow warns about it and goes on.
BROKEN_EXIF = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x010F, 2, 10**6, 10**6) + bytes(4)


# Bytes that are no image


@pytest.mark.parametrize("image_format", SIX_FORMATS)
def test_a_cut_file_is_refused_and_never_half_grey(image_format: str):
    data = encoded(Image.fromarray(noise(64, 64)), image_format)
    assert open_image(data).size == (64, 64)
    for length in range(0, len(data) * 3 // 4, max(1, len(data) // 40)):
        code_of(data[:length])
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty_file"),
        (b"\xff", "unsupported_format"),
        (b"<!doctype html><title>404</title>", "unsupported_format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported_format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unsupported_format"),
        (b"%PDF-1.7", "unsupported_format"),
        (encoded(Image.new("RGB", (2, 2)), "PPM"), "unsupported_format"),
        (encoded(Image.new("RGB", (2, 2)), "ICO"), "unsupported_format"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "corrupt"),
        (b"\xff\xd8\xff" + bytes(99), "corrupt"),
    ],
)
def test_other_bytes_are_refused_by_content(data: bytes, code: str, tmp_path: Path):
    assert code_of(data) == code
    (tmp_path / "photo.jpg").write_bytes(data)
    assert code_of(tmp_path / "photo.jpg") == code


def test_the_name_of_a_file_does_not_matter(tmp_path: Path):
    (tmp_path / "a.jpg").write_bytes(encoded(Image.fromarray(noise()), "PNG"))
    assert np.array_equal(open_image(tmp_path / "a.jpg"), noise())


# Files


@pytest.mark.timeout(10)
def test_special_files_never_hang(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.jpg"))
        (tmp_path / "zero.jpg").symlink_to("/dev/zero")
        for path in (tmp_path, tmp_path / "pipe.jpg", tmp_path / "socket.jpg", tmp_path / "zero.jpg"):
            assert code_of(path) == "not_a_file"


@pytest.mark.timeout(10)
def test_a_file_that_becomes_a_pipe_does_not_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, system_open = tmp_path / "a.jpg", os.open
    path.write_bytes(b"x")

    def open_after_the_swap(*arguments: object) -> int:
        path.unlink()
        os.mkfifo(path)
        return system_open(*arguments)

    monkeypatch.setattr(os, "open", open_after_the_swap)
    assert code_of(path) == "not_a_file"


def test_missing_files_have_codes(tmp_path: Path):
    (tmp_path / "dangling.jpg").symlink_to("nowhere")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "file").write_bytes(b"x")
    for name in ("a.jpg", "dangling.jpg", "loop.jpg", "file/a.jpg", "nul\0.jpg", "\ud800.jpg"):
        assert code_of(tmp_path / name) == "not_found"
    assert code_of(tmp_path / ("x" * 300)) == "io_error"


def test_a_forbidden_file_has_a_code(tmp_path: Path):
    path = tmp_path / "locked" / "a.png"
    path.parent.mkdir()
    path.write_bytes(encoded(Image.fromarray(noise())))
    path.parent.chmod(0)
    was_root = os.geteuid() == 0
    try:
        if was_root:  # whom no permission stops
            os.seteuid(65534)
        assert code_of(path) == "permission_denied"
    finally:
        if was_root:
            os.seteuid(0)
        path.parent.chmod(0o700)


def test_a_loaded_file_carries_the_digest_of_its_bytes(tmp_path: Path):
    data = encoded(Image.fromarray(noise()))
    (tmp_path / "a.png").write_bytes(data)
    loaded = load_image_file(tmp_path / "a.png")
    assert (loaded.sha256, loaded.n_bytes) == (hashlib.sha256(data).hexdigest(), len(data))
    assert np.array_equal(loaded.image, noise())
    assert read_image_bytes(tmp_path / "a.png") == data


# The error seam


class Failing(Image.Image):
    def __init__(self, error: BaseException):
        super().__init__()
        self._size, self.error = (1, 1), error

    def load(self):
        raise self.error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), "out_of_memory"),
        (Image.DecompressionBombError("x"), "too_many_pixels"),
        (OSError("image file is truncated"), "truncated"),
        (EOFError(), "truncated"),
        *[(kind("<_io.BytesIO object at 0x7f>"), "corrupt") for kind in (OSError, KeyError, struct.error)],
        *[(kind("/home/x"), "corrupt") for kind in (ValueError, SyntaxError, TypeError, RecursionError)],
    ],
)
def test_foreign_errors_become_ours_without_their_text(error: Exception, code: str):
    with pytest.raises(ImageError) as caught:
        open_image(Failing(error))
    assert caught.value.code == code
    assert not {"0x", "/", "\n"} & set(str(caught.value).split())
    assert "0x" not in str(caught.value)
    assert caught.value.__cause__ is error


def test_an_interrupt_passes():
    with pytest.raises(KeyboardInterrupt):
        open_image(Failing(KeyboardInterrupt()))


def test_errors_survive_pickling():
    error = pickle.loads(pickle.dumps(ImageError("corrupt", "the data are damaged")))  # noqa: S301
    assert (error.code, error.reason, str(error)) == (
        "corrupt",
        "the data are damaged",
        "the data are damaged [corrupt]",
    )


# Warnings and threads


def broken_exif_photo() -> bytes:
    return encoded(Image.fromarray(noise(32, 32)), "JPEG", exif=BROKEN_EXIF)


@pytest.mark.parametrize("action", ["error", "always", "ignore"])
def test_broken_tags_neither_warn_nor_cost_the_photo(action: str):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Image.open(io.BytesIO(broken_exif_photo())).getexif()
    assert caught, "the photo must be one that Pillow warns about"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter(action)
        assert open_image(broken_exif_photo()).size == (32, 32)
    assert not caught


def test_threads_see_what_one_thread_sees():
    sources = [
        broken_exif_photo(),
        encoded(Image.fromarray(noise(99, 80))),
        b"no image",
        png_header(10**5, 10**5),
    ]
    sources += [
        encoded(Image.fromarray(noise(40 + n, 50)), image_format)
        for n, image_format in enumerate(SIX_FORMATS)
    ]

    def outcome(data: bytes) -> bytes | str:
        try:
            return open_image(data, target_size=20).tobytes()
        except ImageError as error:
            return error.code

    alone = [outcome(data) for data in sources]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(outcome, sources * 30))
    assert together == alone * 30
