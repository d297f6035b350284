"""Folders of photos, and the texts beside them."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".gif": "GIF", ".bmp": "BMP"}
FORMATS |= {".tif": "TIFF", ".tiff": "TIFF"}


def write_photos(folder: Path, *names: str, size: tuple[int, int] = (30, 20)) -> Path:
    """Photos of the formats that their names promise."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, "red").save(path, FORMATS[path.suffix.lower()])
    return folder


def texts(folder: Path) -> dict[str, str]:
    """Every file below a folder that is no photo, hidden ones included, as UTF-8."""
    found = [path for path in folder.rglob("*") if path.is_file() and path.suffix.lower() not in FORMATS]
    return {path.relative_to(folder).as_posix(): path.read_bytes().decode() for path in found}
