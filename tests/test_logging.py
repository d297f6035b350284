from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from lmm_classifier.logging_config import PACKAGE, setup_logging


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    logger = logging.getLogger(PACKAGE)
    before = (logger.handlers[:], logger.level, logger.propagate)
    yield
    logger.handlers[:], logger.level, logger.propagate = before


def test_json_is_one_object_per_line_whatever_the_message() -> None:
    stream = io.StringIO()
    setup_logging("INFO", json=True, stream=stream)
    log = logging.getLogger("lmm_classifier.some.part")
    log.info("two\nlines and a %s", "value", extra={"fields": {"photo": "a.jpg"}})
    try:
        raise ValueError("boom")
    except ValueError:
        log.exception("failed")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["level"], first["logger"], first["photo"]) == ("INFO", "lmm_classifier.some.part", "a.jpg")
    assert first["message"] == "two\nlines and a value"
    assert first["time"].endswith("+00:00")
    assert "ValueError: boom" in second["error"]


def test_a_second_call_replaces_the_first() -> None:
    one, two = io.StringIO(), io.StringIO()
    setup_logging("INFO", stream=one)
    setup_logging("WARNING", stream=two)
    logging.getLogger("lmm_classifier.x").info("quiet")
    logging.getLogger("lmm_classifier.x").warning("loud")
    assert one.getvalue() == ""
    assert two.getvalue().count("loud") == 1
    assert "quiet" not in two.getvalue()


def test_the_hosts_root_logger_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    setup_logging("DEBUG", stream=io.StringIO())
    logging.getLogger("lmm_classifier.x").warning("ours")
    logging.getLogger("host").warning("theirs")
    assert (root.handlers[:], root.level) == before
    assert [r.message for r in caplog.records] == ["theirs"]
