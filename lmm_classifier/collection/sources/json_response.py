"""JSON out of an answer that may have wrapped it in a page."""

from __future__ import annotations

import html
import json
from typing import Any

from lmm_classifier.errors import CollectionError

_TRIES = 200  # places in a page at which something may begin that is no JSON: styles, scripts


def json_in(content: bytes, where: str) -> Any:
    """The value that an answer is, or the longest array or object that stands in it.

    A page may hold the JSON as it is or, as browsers want it in `<pre>`, with its quotes escaped.

    Raises:
        CollectionError: there is none.
    """
    try:
        text = content.decode("utf-8-sig")
        return json.loads(text)
    except UnicodeDecodeError as error:
        raise CollectionError(f"{where}: the answer is not UTF-8") from error
    except RecursionError as error:
        raise CollectionError(f"{where}: the answer is nested too deeply") from error
    except ValueError:
        found = [*_values(text), *(_values(html.unescape(text)) if "&" in text else ())]
    if not found:
        raise CollectionError(f"{where}: the answer holds no whole JSON")
    return max(found, key=lambda pair: pair[0])[1]


def _values(text: str) -> list[tuple[int, Any]]:
    """Every array or object in a text that lies in no other one: length, value."""
    decoder, found, at = json.JSONDecoder(), [], 0
    for _ in range(_TRIES):
        starts = [start for start in (text.find("[", at), text.find("{", at)) if start >= 0]
        if not starts:
            break
        begin = min(starts)
        try:
            value, at = decoder.raw_decode(text, begin)
            found.append((at - begin, value))
        except (ValueError, RecursionError):
            at = begin + 1
    return found
