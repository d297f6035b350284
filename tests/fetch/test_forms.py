"""Forms and keys, read by what servers read them with."""

from __future__ import annotations

import asyncio
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import UploadFile
from starlette.requests import Request

from lmm_classifier.errors import ConfigError
from lmm_classifier.fetch import FormFile, bearer, form_data


def parsed(body: bytes, content_type: str) -> dict[str, str | FormFile]:
    """What starlette, with python-multipart, finds in a form."""

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def read() -> dict[str, str | FormFile]:
        headers = [(b"content-type", content_type.encode())]
        async with Request({"type": "http", "method": "POST", "headers": headers}, receive).form() as form:
            return {
                key: FormFile(value.filename, value.content_type, await value.read())
                if isinstance(value, UploadFile)
                else value
                for key, value in form.multi_items()
            }

    return asyncio.run(read())


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("photo.jpg", "photo.jpg"),
        ("with blank; and=more.jpg", "with blank; and=more.jpg"),
        ("straße 日本 🧀.jpg", "straße 日本 🧀.jpg"),
        ('a"; filename="b.jpg', "a%22; filename=%22b.jpg"),
        ("a\r\nX: y\r\n\r\nb.jpg", "a��X: y����b.jpg"),
        ("\x00\x1b\udce9.jpg", "���.jpg"),
        ("100%.jpg", "100%.jpg"),
        ("", ""),
    ],
)
def test_a_file_name_arrives_and_cannot_break_out(name: str, read: str) -> None:
    fields = {"tasks": "{}", "file": FormFile(name, "image/jpeg", b"\xff\xd8")}
    assert parsed(*form_data(fields)) == {"tasks": "{}", "file": FormFile(read, "image/jpeg", b"\xff\xd8")}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\r\n",
        b"--",
        b"\r\n--",
        b"--\r\n\r\n--",
        b"\r",
        bytes(range(256)) * 999,
        b"\r\n--abc--\r\n" * 99,
    ],
)
def test_content_arrives_as_it_is(content: bytes) -> None:
    body, kind = form_data({"a": "ein Käse\r\n--", "file": FormFile("x", "image/png", content), "z": ""})
    assert parsed(body, kind) == {
        "a": "ein Käse\r\n--",
        "file": FormFile("x", "image/png", content),
        "z": "",
    }


@given(st.lists(st.sampled_from([b"\r", b"\n", b"-", b"a", b"\0", b"\xff"])).map(b"".join))
def test_any_content_arrives_as_it_is(content: bytes) -> None:
    fields = {"file": FormFile("x", "image/png", content)}
    assert parsed(*form_data(fields)) == fields


def test_the_boundary_cannot_be_guessed() -> None:
    kinds = {form_data({"a": "b"})[1] for _ in range(100)}
    assert len(kinds) == 100
    assert all(re.fullmatch(r"multipart/form-data; boundary=[0-9a-f]{32}", kind) for kind in kinds)


def test_a_key_is_a_header_and_no_key_is_none() -> None:
    assert bearer("sk-1", "it") == {"Authorization": "Bearer sk-1"}
    assert bearer("", "it") == {}


@pytest.mark.parametrize("key", ["two\nlines", "Käse", "a\x00b", "\x7f"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(ConfigError, match=r"^KEY_OF_MINE holds characters that a request cannot carry$"):
        bearer(key, "KEY_OF_MINE")
