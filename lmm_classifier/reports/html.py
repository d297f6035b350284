"""What the HTML pages share: the frame, escaping, and small pictures inside the page.

Each is one file without scripts that fetches nothing; every text is escaped, and a Content-Security-Policy
forbids the rest.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from lmm_classifier.corpus.images import open_image
from lmm_classifier.corpus.pixels import as_webp
from lmm_classifier.errors import ImageError
from lmm_classifier.storage.atomic_files import replace_file
from lmm_classifier.text import printable

_HERE = "lmm_classifier.reports"
_THUMBNAIL = 96  # px, longest side
_QUALITY = 90  # of 100


def write_page(path: Path, template: str, *, package: str, **values: Any) -> None:
    """Render a template, which extends frame.html.jinja beside this file, and write it as UTF-8.

    Args:
        path: the HTML file.
        template: name of its file.
        package: the package in whose folder that file lies, such as "lmm_classifier.audit".
        values: what the template reads; each is escaped, and a missing one is an error.

    Raises:
        IndexFolderError: it cannot be written there.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, "."), PackageLoader(_HERE, ".")]),
        autoescape=True,
        undefined=StrictUndefined,
    )
    environment.filters["printable"] = printable
    page = environment.get_template(template).render(**values)
    replace_file(path, page.encode("utf-8", "replace"))


def picture_of(photo: Path) -> tuple[str | None, str | None]:
    """The photo as a data URL, or why there is none: it may be gone since it was looked at."""
    try:
        return thumbnail(photo), None
    except ImageError as error:
        return None, error.reason


def thumbnail(path: Path) -> str:
    """A WebP of the photo as a data URL, at most THUMBNAIL px along its longest side.

    WebP because a page of some hundred photos is a fifth of what it is with PNG.

    Raises:
        ImageError: the photo cannot be read.
    """
    webp = as_webp(open_image(path, target_size=_THUMBNAIL), _THUMBNAIL, _QUALITY)
    return "data:image/webp;base64," + base64.b64encode(webp).decode()
