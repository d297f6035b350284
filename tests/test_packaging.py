"""What is built and installed: its files, that type checkers and benchmarks find it, what is said of it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from installed import run_with
from lmm_classifier import __version__
from lmm_classifier.collection import artifact as version
from lmm_classifier.evaluation import results as evaluation
from lmm_classifier.experiments import compare
from lmm_classifier.experiments import run as runs
from lmm_classifier.index import calibration, manifest
from lmm_classifier.labelling import run_manifest as facts

ROOT = Path(__file__).parents[1]
BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))


def built(hook: str, folder: Path) -> Path:
    """The file that the build backend itself makes of the clone, in this environment."""
    folder.mkdir()
    code = f"import sys; from hatchling.build import {hook} as build; build(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, capture_output=True, check=True)
    [made] = folder.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built("build_wheel", tmp_path_factory.mktemp("wheel") / "dist")


@pytest.fixture
def editable(tmp_path: Path) -> Path:
    """A folder with an editable install, as it would be in site-packages."""
    site = tmp_path / "site"
    shutil.unpack_archive(built("build_editable", tmp_path / "dist"), site, "zip")
    return site


def sources() -> set[str]:
    """Every file of the package that belongs to the project, whatever its ending."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "lmm_classifier"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in told.stdout.splitlines() if (ROOT / name).exists()}


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    about = {name for name in names if ".dist-info/" in name}
    assert names - about == sources()
    assert {name.partition(".dist-info/")[2] for name in about} == {
        "METADATA",
        "RECORD",
        "WHEEL",
        "entry_points.txt",
        "licenses/LICENSE",
    }


def test_the_source_distribution_holds_what_a_wheel_is_built_of(tmp_path: Path) -> None:
    with tarfile.open(built("build_sdist", tmp_path / "dist")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    written = {"CHANGELOG.md", "LICENSE", "README.md", "SECURITY.md", "VERSIONING.md"}
    assert names == sources() | written | {".gitignore", "PKG-INFO", "constraints.txt", "pyproject.toml"}


def test_an_editable_install_is_a_plain_path(editable: Path) -> None:
    """Editors and type checkers read no import hooks."""
    [path] = editable.glob("*.pth")
    assert path.read_text(encoding="utf-8").strip() == str(ROOT)
    assert list(editable.rglob("*.py")) == []


def test_a_type_checker_finds_the_types_of_an_editable_install(editable: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    [site] = (tmp_path / "venv").rglob("site-packages")
    shutil.copytree(editable, site, dirs_exist_ok=True)
    (tmp_path / "asked.py").write_text(
        "from lmm_classifier.errors import ConfigError, nothing\n", encoding="utf-8"
    )
    options = ["--python-executable", tmp_path / "venv/bin/python", "--cache-dir", tmp_path / "cache"]
    found = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "asked.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stdout.splitlines() == [
        'asked.py:1: error: Module "lmm_classifier.errors" has no attribute "nothing"  [attr-defined]',
        "Found 1 error in 1 file (checked 1 source file)",
    ]


@pytest.fixture(scope="module")
def helped(
    wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, subprocess.CompletedProcess[str]]:
    """Every benchmark asked for its help, where the package is installed from a wheel, outside the clone."""
    site, elsewhere = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("elsewhere")
    shutil.unpack_archive(wheel, site, "zip")

    def ask(script: Path) -> subprocess.CompletedProcess[str]:
        return run_with(site, elsewhere, str(script), "--help")

    with ThreadPoolExecutor(2) as pool:
        return dict(zip((script.name for script in BENCHMARKS), pool.map(ask, BENCHMARKS), strict=True))


@pytest.mark.parametrize("name", [script.name for script in BENCHMARKS])
def test_a_benchmark_starts_without_the_clone_on_the_path(
    name: str, helped: dict[str, subprocess.CompletedProcess[str]]
) -> None:
    assert helped[name].returncode == 0, helped[name].stderr
    assert helped[name].stdout.startswith(f"usage: {name}")


def test_the_version_policy_tells_the_versions_of_the_files() -> None:
    rows = re.findall(r"^\| (.+?) \| (\d+) \|", (ROOT / "VERSIONING.md").read_text(encoding="utf-8"), re.M)
    assert {what: int(number) for what, number in rows} == {
        "index (`manifest.json`)": manifest.SCHEMA_VERSION,
        "calibration of an index": calibration.SCHEMA_VERSION,
        "classifier store": version.SCHEMA_VERSION,
        "labelling run": facts.SCHEMA_VERSION,
        "evaluations, comparisons, experiments": evaluation.SCHEMA_VERSION,
    }
    assert evaluation.SCHEMA_VERSION == compare.SCHEMA_VERSION == runs.SCHEMA_VERSION


def test_the_version_has_its_changes() -> None:
    assert re.search(
        rf"^## {re.escape(__version__)} - \d{{4}}-\d\d-\d\d$",
        (ROOT / "CHANGELOG.md").read_text("utf-8"),
        re.M,
    )
