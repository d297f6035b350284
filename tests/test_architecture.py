"""What holds of the code as a whole: who may import what, what starting costs, what is never written."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import statistics
import subprocess
import sys
import time
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lmm_classifier"
PAGE = ROOT / "docs/contributing/architecture.md"
SOURCES = sorted(PACKAGE.rglob("*.py"))


def test_layers_are_kept() -> None:
    result = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout


def rows_of(heading: str) -> list[list[str]]:
    """Per row of the table under a heading of the architecture page, the names in backticks of each cell."""
    text = PAGE.read_text("utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    return [re.findall(r"`([\w.]+)`", row) for row in rows]


def test_the_architecture_page_has_the_layers_that_are_checked() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    [layers] = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    assert rows_of("Who may import whom") == [[name.strip() for name in row.split("|")] for row in layers]


def test_the_architecture_page_has_every_package() -> None:
    packages = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
    assert [row[0] for row in rows_of("Packages")] == ["lmm_classifier", *packages]


def test_what_the_architecture_page_names_is_there() -> None:
    text = PAGE.read_text("utf-8").split("## The walk of one photo")[1]
    names = re.findall(r"`((?:\w+\.)+\w+)`", text.split("## Who may")[0])
    assert len(names) > 15
    for name in names:
        if name.endswith((".py", ".yaml")):
            continue
        module, _, attribute = f"lmm_classifier.{name}".rpartition(".")
        if not importlib.util.find_spec(f"{module}.{attribute}" if is_package(module) else module):
            raise AssertionError(name)
        if not is_package(module):
            assert hasattr(importlib.import_module(module), attribute), name


def is_package(module: str) -> bool:
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.submodule_search_locations is not None


@pytest.mark.parametrize("module", ["lmm_classifier", "lmm_classifier.cli"])
def test_importing_opens_no_heavy_library(module: str) -> None:
    code = (
        f"import sys, {module}\n"
        "heavy = {'torch', 'transformers', 'faiss', 'sklearn', 'skimage', 'pyarrow', 'matplotlib'}\n"
        "print(heavy & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


@pytest.mark.timing
@pytest.mark.parametrize(
    ("command", "times"),
    [(["-c", "import lmm_classifier"], 4), (["-m", "lmm_classifier", "--help"], 20)],
)
def test_starting_takes_few_times_as_long_as_python_itself(command: list[str], times: int) -> None:
    """Measured 1.2 and 9 times; importing torch alone takes 70 times as long."""

    def once(*arguments: str) -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
        return time.perf_counter() - started

    once(*command)
    python, ours = zip(*[(once("-c", "pass"), once(*command)) for _ in range(7)], strict=True)
    assert statistics.median(ours) < times * statistics.median(python)


def test_every_public_name_can_be_imported() -> None:
    code = (
        "import lmm_classifier as l\n"
        "[getattr(l, name) for name in l.__all__]\n"
        "print(sorted(set(dir(l)) ^ set(l.__all__)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def definitions(*kinds: type[ast.AST]) -> list[tuple[Path, Any]]:
    """All functions or classes of the package, wherever in a file."""
    trees = ((path, ast.parse(path.read_text(encoding="utf-8"))) for path in SOURCES)
    return [(path, node) for path, tree in trees for node in ast.walk(tree) if isinstance(node, kinds)]


def test_class_names_are_unique() -> None:
    places = defaultdict(list)
    for path, node in definitions(ast.ClassDef):
        places[node.name].append(str(path.relative_to(PACKAGE)))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_the_root_holds_few_modules() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 16


def test_files_and_functions_are_short() -> None:
    lines = sorted(path.read_text(encoding="utf-8").count("\n") for path in SOURCES)
    assert statistics.median(lines) <= 120
    assert lines[len(lines) * 9 // 10] <= 260
    functions = definitions(ast.FunctionDef, ast.AsyncFunctionDef)
    lengths = sorted(node.end_lineno - node.lineno + 1 for _, node in functions)
    assert lengths[len(lengths) * 95 // 100] <= 30


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_unsafe_loading_and_no_long_file(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)}
    unsafe = {"pickle.load", "pickle.loads", "joblib.load", "torch.load", "yaml.unsafe_load", "eval", "exec"}
    assert not calls & unsafe
    assert not re.search(r"allow_pickle=True|trust_remote_code=True|shell=True", text)


def test_pickle_is_known_to_one_program_that_nothing_imports() -> None:
    """`collections convert` runs it in a process of its own, and only when told to trust the files."""
    texts = {p.relative_to(PACKAGE).as_posix(): p.read_text(encoding="utf-8") for p in SOURCES}
    opening = re.compile(
        r"Unpickler\b|\bpickle\.loads?\(|^\s*(import|from) (joblib|dill|marshal|shelve)\b", re.M
    )
    assert [name for name, text in texts.items() if opening.search(text)] == ["collection/unpickle.py"]
    importing = re.compile(r"^\s*(import|from) lmm_classifier\.collection(\.| import )unpickle\b", re.M)
    assert [name for name, text in texts.items() if importing.search(text)] == []


CLIENTS = frozenset(
    [
        "aiohttp",
        "boto3",
        "ftplib",
        "fsspec",
        "gradio_client",
        "grpc",
        "http",
        "httpcore",
        "httpcore2",
        "httplib2",
        "httpx",
        "httpx2",
        "imaplib",
        "paramiko",
        "poplib",
        "pycurl",
        "requests",
        "smbclient",
        "smtplib",
        "socket",
        "socketserver",
        "ssl",
        "telnetlib",
        "tornado",
        "urllib",
        "urllib3",
        "websocket",
        "websockets",
        "wget",
        "xmlrpc",
    ]
)
HARMLESS = frozenset({"urllib.parse", "urllib.error"})
OPENING = frozenset(
    [
        "cached_path",
        "create_connection",
        "download_url",
        "download_url_to_file",
        "getaddrinfo",
        "hf_hub_download",
        "load_dataset",
        "load_state_dict_from_url",
        "open_connection",
        "snapshot_download",
        "urlopen",
        "urlretrieve",
    ]
)


def connections(source: str) -> set[str]:
    """What a file imports or calls to reach other machines, wherever in it and under whatever name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            whole = node.module in ("urllib", "torch")  # of which the names are modules
            modules = [f"{node.module}.{alias.name}" if whole else str(node.module) for alias in node.names]
            found |= {alias.name for alias in node.names} & OPENING
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            found |= {called} & OPENING
            if called in ("import_module", "__import__") and node.args:
                modules = [str(getattr(node.args[0], "value", ""))]
        found |= {name for name in modules if name.partition(".")[0] in CLIENTS and name not in HARMLESS}
    return found


def test_one_file_opens_the_urls_of_the_project() -> None:
    """The rest reaches the hub through its own library, weights that torchvision publishes, and Ray."""
    opening = {path.relative_to(PACKAGE).as_posix(): connections(path.read_text("utf-8")) for path in SOURCES}
    assert {path: found for path, found in opening.items() if found} == {
        "fetch/connection.py": {"httpcore2", "socket", "ssl", "getaddrinfo"},
        "index/milvus.py": {"grpc"},  # the errors of Milvus' own client
        "index/ray_runner.py": {"socket", "create_connection"},  # is the Ray there that the user names?
        "models/faster_rcnn.py": {"load_state_dict_from_url"},  # one address, with its digest
        "models/runtime/pretrained.py": {"snapshot_download"},
        "models/runtime/checkpoint_cache.py": {"snapshot_download"},
    }


@pytest.mark.parametrize(
    "planted",
    [
        "import requests",
        "import urllib.request as parse",
        "from urllib import request",
        "from urllib.request import Request",
        "def f():\n    import httpx",
        "try:\n    from aiohttp import ClientSession\nexcept ImportError: pass",
        "if TYPE_CHECKING:\n    import http.client",
        "import importlib\nimportlib.import_module('requests')",
        "__import__('socket')",
        "import a\na.b.urlopen('http://open.test')",
        "from a import urlretrieve as parse",
        "import torch\ntorch.hub.load_state_dict_from_url('http://open.test')",
    ],
)
def test_another_one_would_be_seen(planted: str) -> None:
    assert connections(planted)
    assert not connections("import json\nfrom urllib.parse import quote\nimport urllib.error\nfetch('x')")


def test_only_one_file_opens_image_bytes() -> None:
    opening = re.compile(r"\bImage\.open\(|ImageFile\(|imread\(")
    assert [p.name for p in SOURCES if opening.search(p.read_text(encoding="utf-8"))] == []
    decoders = [p.relative_to(PACKAGE).as_posix() for p in SOURCES if "JpegImageFile" in p.read_text("utf-8")]
    assert decoders == ["corpus/images.py"]
