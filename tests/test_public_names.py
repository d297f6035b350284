"""What programs may import: the names of `lmm_classifier`, and for one more release from where they were."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path

import pytest

import lmm_classifier
from lmm_classifier.deprecation import MOVED

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
FORMER = (
    ("lmm_classifier.evaluate.calibrate", "calibrate", "calibrate"),
    ("lmm_classifier.evaluate.evaluate", "evaluate", "evaluate"),
    ("lmm_classifier.models.base", "ModelSpec", "ModelSpec"),
    ("lmm_classifier.models.segmentation", "open_photo", "open_photo"),
    ("lmm_classifier.plan", "Where", "RegionSelector"),
    ("lmm_classifier.vision", "classify", "classify_image"),
    ("lmm_classifier.vision", "embed", "embed"),
    ("lmm_classifier.vision", "labels", "labels"),
    ("lmm_classifier.vision", "similarity", "similarity"),
)
KEPT = (
    ("lmm_classifier.corpus.images", "open_image"),
    ("lmm_classifier.logging_config", "setup_logging"),
    ("lmm_classifier.masks", "apply_mask"),
    ("lmm_classifier.pipeline", "Pipeline"),
    ("lmm_classifier.pipeline", "Step"),
    ("lmm_classifier.pipeline", "run_shared"),
    ("lmm_classifier.types", "Sample"),
    ("lmm_classifier.types", "Scores"),
    ("lmm_classifier.types", "required"),
)


def imports(code: str) -> set[str]:
    """Modules of ours that a piece of code imports from."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            found.add(str(node.module))
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.partition(".")[0] == "lmm_classifier"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_of_the_pages_imports_from_the_package_itself(page: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    assert set().union(*map(imports, blocks)) <= {"lmm_classifier"}


def test_the_readme_imports_only_what_there_is() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGES[0].read_text("utf-8"), re.DOTALL)
    names = {
        alias.name
        for block in blocks
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.ImportFrom) and node.module == "lmm_classifier"
        for alias in node.names
    }
    assert len(names) > 10
    assert names <= set(lmm_classifier.__all__)


@pytest.mark.parametrize(("module", "name", "now"), FORMER)
def test_what_the_readme_named_before_works_and_says_where_it_is_now(
    module: str, name: str, now: str
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = getattr(import_module(module), name)
    assert found is getattr(lmm_classifier, now)
    [warning] = caught
    assert warning.category is DeprecationWarning
    assert str(warning.message).startswith(f"{module}.{name} ")
    assert f"from lmm_classifier import {now}`" in str(warning.message)
    assert warning.filename == __file__


def test_all_of_these_are_tried() -> None:
    assert {(module, name) for module, names in MOVED.items() for name in names} == {
        (module, name) for module, name, _ in FORMER
    }


@pytest.mark.parametrize(("module", "name"), KEPT)
def test_other_places_that_the_readme_named_are_still_there(module: str, name: str) -> None:
    assert getattr(import_module(module), name) is getattr(lmm_classifier, name)


def test_the_former_package_of_a_function_does_not_hide_it() -> None:
    """`import lmm_classifier.evaluate.evaluate` sets `lmm_classifier.evaluate` to that package."""
    code = (
        "import warnings; warnings.simplefilter('ignore'); import lmm_classifier\n"
        "from lmm_classifier.evaluate.evaluate import evaluate\n"
        "try: lmm_classifier.evaluate()\n"
        "except TypeError as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("evaluate() missing 2 required positional arguments")


def test_a_name_that_never_was_is_no_name() -> None:
    with pytest.raises(ImportError, match="cannot import name 'nothing' from 'lmm_classifier.vision'"):
        from lmm_classifier.vision import nothing  # noqa: F401
    with pytest.raises(ModuleNotFoundError, match="lmm_classifier.nothing"):
        import_module("lmm_classifier.nothing")
