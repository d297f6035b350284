"""How a whole request is refused: a status, {"detail", "code"}, and never the text of an exception."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

_CODES = {400: "malformed", 404: "not_found", 405: "no_such_method"}


class HttpError(HTTPException):
    """A whole request that fails, in a way that is told.

    Attributes:
        code: for programs; `detail` is for people.
    """

    def __init__(self, status: int, code: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, detail, headers)
        self.code = code

    @property
    def body(self) -> dict[str, str]:
        """As it is answered."""
        return {"detail": self.detail, "code": self.code}

    def response(self) -> JSONResponse:
        """The whole answer."""
        return JSONResponse(self.body, self.status_code, self.headers)


def explain_refusals(app: FastAPI) -> None:
    """Answer in this form whatever a route, or what stands before it, raises."""
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _malformed)


async def _refused(_: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, HTTPException):
        raise error
    if isinstance(error, HttpError):
        return error.response()
    code = _CODES.get(error.status_code, "refused")
    return HttpError(error.status_code, code, error.detail, error.headers).response()


async def _malformed(_: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, RequestValidationError):
        raise error
    return HttpError(422, "malformed", first_problem(error.errors())).response()


def first_problem(problems: Any) -> str:
    """Where it is wrong, without repeating what was sent."""
    where = ".".join(str(part)[:40] for part in problems[0]["loc"])
    problem = str(problems[0]["msg"]).removeprefix("Value error, ")
    return f"{where}: {problem}" if where else problem
