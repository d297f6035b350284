"""What a request carries besides its address: a key in its headers, a form in its body."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from lmm_classifier.errors import ConfigError
from lmm_classifier.text import printable


@dataclass(frozen=True, slots=True)
class FormFile:
    """A file in a form.

    Attributes:
        name: what the server is told it is called.
        type: such as "image/jpeg".
        content: as it is sent.
    """

    name: str
    type: str
    content: bytes


def bearer(key: str, source: str) -> dict[str, str]:
    """The headers that show a key to a server; none where there is no key.

    Args:
        key: as it is sent, or "".
        source: where it is from, for the error, which does not repeat it.

    Raises:
        ConfigError: it holds characters that a request cannot carry.
    """
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"{source} holds characters that a request cannot carry")
    return {"Authorization": f"Bearer {key}"} if key else {}


def form_data(fields: Mapping[str, str | FormFile]) -> tuple[bytes, str]:
    """A form as browsers send it (RFC 7578).

    Args:
        fields: by their names, which are ours: plain words.

    Returns:
        the body, and its Content-Type. The boundary is drawn at random: that the body holds it is as likely
        as guessing a key of 128 bits.
    """
    boundary = secrets.token_hex(16)
    parts: list[bytes] = []
    for name, value in fields.items():
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"'
        if isinstance(value, FormFile):
            head += f'; filename="{_quoted(value.name)}"\r\nContent-Type: {value.type}'
        content = value.content if isinstance(value, FormFile) else value.encode()
        parts += [head.encode(), b"\r\n\r\n", content, b"\r\n"]
    parts.append(f"--{boundary}--\r\n".encode())
    return b"".join(parts), f"multipart/form-data; boundary={boundary}"


def _quoted(name: str) -> str:
    """A file name that cannot end its quotes or its line, escaped as browsers do it."""
    return printable(name).replace('"', "%22")
