"""Packages of others: installing one into a folder, and running Python with that folder on its path."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "1.0"

[project.entry-points."lmm_classifier.{kind}s"]
{name} = "{module}:{attribute}"

[tool.hatch.build.targets.wheel]
only-include = ["{module}.py"]
"""


def install(root: Path, kind: str, name: str, attribute: str, code: str) -> Path:
    """Let pip install a module with one entry point into a folder, without any index to ask."""
    module = name.replace("-", "_")
    project = PROJECT.format(name=name, kind=kind, module=module, attribute=attribute)
    (root / "project").mkdir()
    (root / "project/pyproject.toml").write_text(project)
    (root / f"project/{module}.py").write_text(code)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(root / "site")]
    command = [sys.executable, "-m", "pip", "install", *options, str(root / "project")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return root / "site"


def run_with(site: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with these arguments and the folder on its path."""
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    command = [sys.executable, *arguments]
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
