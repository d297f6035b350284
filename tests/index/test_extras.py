"""Commands whose library is not installed say which extra brings it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from synthetic import write_corpus

WITHOUT = (
    "import sys; sys.modules[sys.argv[1]] = None; from lmm_classifier.cli import main; main(sys.argv[2:])"
)


@pytest.mark.parametrize(
    ("library", "name", "arguments"),
    [
        ("ray", "ray", ["index", "build", "corpus", "-o", "index", "--encoder", "fake", "--engine", "ray"]),
        ("pymilvus", "milvus", ["index", "push", "index", "--milvus", "./x.db"]),
    ],
)
def test_a_missing_extra_is_one_sentence(
    tmp_path: Path, library: str, name: str, arguments: list[str]
) -> None:
    write_corpus(tmp_path / "corpus", per_label=2)
    command = [sys.executable, "-c", WITHOUT, library, *arguments]
    failed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    expected = f"error: {library} is not installed: pip install 'lmm-classifier[{name}]'\n"
    assert (failed.returncode, failed.stdout, failed.stderr) == (1, "", expected)
