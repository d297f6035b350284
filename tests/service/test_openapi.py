"""What the service says of itself, by a tool that knows nothing else of it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from served import classifier, serving

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.mark.parametrize("n", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_it_keeps_to_what_it_says(n: int, index: Path, store: Path, tmp_path: Path) -> None:
    """Documented statuses, types and bodies only, and never one of 500 to 502, whatever is sent."""
    with serving(classifier(index, store=store)) as service:
        ended = subprocess.run(
            [
                Path(sys.executable).with_name("schemathesis"),
                *("run", f"http://127.0.0.1:{service.port}/openapi.json", "--checks", CHECKS),
                *("--phases", "fuzzing,coverage", "-n", str(n), "--seed", "1", "--continue-on-failure"),
                *("--warnings", "off", "--no-color", "--generation-database", "none"),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
    assert ended.returncode == 0, ended.stdout
    generated, passed = map(int, re.findall(r"(\d+) generated, (\d+) passed", ended.stdout)[0])
    assert generated == passed >= (500 if n == 100 else 100)
    assert "Tested: 9" in ended.stdout
