"""What pyproject.toml declares, against what the code imports and against the versions in constraints.txt."""

from __future__ import annotations

import ast
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NOT_IMPORTED = {
    "milvus-lite": "pymilvus opens an index in a file with it",
    "python-multipart": "FastAPI reads uploads with it",
    "sentencepiece": "transformers reads SigLIP's tokenizer with it",
}
"""What is needed all the same, and by whom."""


def declared(*extras: str) -> set[str]:
    """The distributions that an install with these extras asks for, by their canonical names."""
    asked = [*PROJECT["dependencies"], *(e for x in extras for e in PROJECT["optional-dependencies"][x])]
    return {canonicalize_name(Requirement(each).name) for each in asked} - {PROJECT["name"]}


def imported(source: str) -> set[str]:
    """The packages of others that a file imports, wherever in it."""
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules |= {node.module or ""}
    return {module.partition(".")[0] for module in modules} - {*sys.stdlib_module_names, "lmm_classifier"}


EXTRAS = tuple(PROJECT["optional-dependencies"])
FOR_USE = declared(*(extra for extra in EXTRAS if extra != "test"))
OWNERS = {
    package: {canonicalize_name(owner) for owner in owners}
    for package, owners in packages_distributions().items()
}
"""Which distributions each package may come from, of all that is installed here."""


def packages(*folders: str) -> set[str]:
    """What the files below these folders import from others."""
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return set().union(*(imported(path.read_text(encoding="utf-8")) for path in files))


def undeclared(found: set[str], names: set[str]) -> set[str]:
    """The packages that no declared distribution brings; those of an extra that is not here are unknown."""
    return {package for package in found if package in OWNERS and not OWNERS[package] & names}


def test_everything_imported_is_declared() -> None:
    found = packages("lmm_classifier")
    assert undeclared(found, FOR_USE) == set()
    assert found - set(OWNERS) <= {"grpc", "pymilvus", "ray"}  # of extras that need not be here


def test_what_the_tests_import_is_declared() -> None:
    own = {path.stem for path in (ROOT / "tests").rglob("*.py")}
    assert undeclared(packages("tests", "benchmarks", ".ci") - own, declared(*EXTRAS)) == set()


def test_everything_declared_is_imported_or_has_its_reason() -> None:
    found = packages("lmm_classifier")
    if missing := sorted(found - set(OWNERS)):
        pytest.skip(f"an extra is not installed: {', '.join(missing)}")
    assert FOR_USE - set().union(*(OWNERS[package] for package in found)) == set(NOT_IMPORTED)


def test_an_import_is_seen_wherever_it_stands() -> None:
    source = (
        "import a.b\nif x:\n    from c.d import e\ndef f():\n    import g as h, json\nimport lmm_classifier"
    )
    assert imported(source) == {"a", "c", "g"}


def pins() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


def direct() -> list[Requirement]:
    """Every dependency with its bounds, of all extras."""
    extras = PROJECT["optional-dependencies"].values()
    asked = [
        Requirement(each) for each in [*PROJECT["dependencies"], *(e for extra in extras for e in extra)]
    ]
    return [each for each in asked if each.name != PROJECT["name"]]


@pytest.mark.parametrize("wanted", direct(), ids=str)
def test_a_dependency_has_its_version_in_the_constraints(wanted: Requirement) -> None:
    found = [pin for pin in pins() if canonicalize_name(pin.name) == canonicalize_name(wanted.name)]
    assert found
    for pin in found:
        [exact] = pin.specifier
        assert exact.operator == "=="
        assert exact.version in wanted.specifier


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_each_python_has_one_version_of_each(python: str) -> None:
    machine = {"python_version": python, "python_full_version": f"{python}.0"}
    names = [canonicalize_name(p.name) for p in pins() if not p.marker or p.marker.evaluate(machine)]
    assert len(set(names)) == len(names)
    assert {canonicalize_name(each.name) for each in direct() if not each.marker} <= set(names)


def test_the_constraints_hold_on_any_machine() -> None:
    """A constraint with an address or a local version would fit where it was made, and nowhere else."""
    assert [str(pin) for pin in pins() if pin.url or "+" in str(pin.specifier)] == []


@pytest.mark.parametrize("name", ["torch", "torchvision"])
def test_a_build_without_cuda_is_as_good(name: str) -> None:
    """Its version ends in +cpu, which neither bounds nor constraints may exclude: pip would fetch CUDA's."""
    [pin] = [pin for pin in pins() if pin.name == name]
    [exact] = pin.specifier
    [wanted] = [each for each in direct() if each.name == name]
    assert f"{exact.version}+cpu" in wanted.specifier
    assert f"{exact.version}+cpu" in pin.specifier
