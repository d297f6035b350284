"""The files of a page: there is no build step, and nothing else of a folder can be reached."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

PAGE = Path(__file__).with_name("page")
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
"""By the end of a name: a machine's own table of types may call a script text, and browsers then run none."""


def page(files: Iterable[Path]) -> APIRouter:
    """Routes to these files, each by its name; index.html is what / shows."""
    routes = APIRouter(include_in_schema=False)
    for file in files:
        _add(routes, file)
    return routes


def _add(routes: APIRouter, file: Path) -> None:
    async def send() -> FileResponse:
        return FileResponse(file, media_type=_TYPES[file.suffix])

    routes.add_api_route("/" if file.name == "index.html" else f"/{file.name}", send)
