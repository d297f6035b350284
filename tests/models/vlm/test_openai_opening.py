"""The chooser behind a server, before it is asked."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from PIL import Image

from lmm_classifier.errors import ConfigError
from lmm_classifier.models.base import Question
from lmm_classifier.models.loading import load_chooser
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.models.vlm.openai_api import OpenAIChooser
from refusals import refused
from vlm_server import (
    CHAT,
    serving,
    watching,
)

pytestmark = pytest.mark.usefixtures("loopback")


class TestOpening:
    def test_opens_no_connection(self) -> None:
        with serving({}) as server:
            assert isinstance(load_chooser(ModelSpec("openai_api", server.weights)), OpenAIChooser)
            assert server.paths == []

    def test_imports_no_torch(self) -> None:
        code = (
            "import sys, lmm_classifier.models.vlm.openai_api; print({'torch', 'openai'} & set(sys.modules))"
        )
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert found.stdout.strip() == "set()"

    @pytest.mark.parametrize(
        ("weights", "says"),
        [
            ("", "http://localhost:8000/v1#name-of-model"),
            ("Qwen/Qwen2-VL-7B-Instruct", "must start with http"),
            ("http://localhost:8000/v1", "names no model"),
            ("http://localhost:8000/v1#", "names no model"),
            ("ftp://localhost/v1#a", "must start with http"),
            ("http://user:word@localhost/v1#a", "user name"),
            ("http://localhost/v1?key=a#a", "query"),
            ("http://local host/v1#a", "blanks"),
        ],
    )
    def test_says_what_is_wrong_with_an_address(self, weights: str, says: str) -> None:
        assert refused(load_chooser, ModelSpec("openai_api", weights), says)

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"compile": True}, "leave `compile` out"),
            ({"device": "cpu"}, "the server sets device"),
            ({"dtype": "float32"}, "the server sets dtype"),
            ({"revision": "v2"}, "the server sets revision"),
        ],
    )
    def test_refuses_what_the_server_decides(self, options: dict[str, Any], says: str) -> None:
        assert refused(load_chooser, ModelSpec("openai_api", "http://localhost/v1#a", **options), says)

    def test_options_that_do_not_suit_the_form_are_refused_before_anything_is_sent(
        self,
    ) -> None:
        question = Question(Image.new("RGB", (4, 4)), "Is it?", ("rose", "tulip"), "yes_no")
        with serving({CHAT: watching}) as server:
            chooser = load_chooser(ModelSpec("openai_api", server.weights))
            with pytest.raises(ConfigError, match="yes or no"):
                chooser.log_likelihoods([question], 1)
        assert server.asked == []
