"""The container files, read here, by hadolint and by Docker Compose itself. Nothing is built or run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from local_server import LocalHandler, LocalServer, running

ROOT = Path(__file__).parents[1]
PINNED = re.compile(r"[a-z0-9./-]+:v?\d+\.\d+[\w.-]*")  # name:version
SECRET = re.compile(r"key|token|secret|password", re.IGNORECASE)


def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile, with their arguments in one line; comments left out."""
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#"))
    whole = [line.partition(" ") for line in text.replace("\\\n", "").splitlines() if line]
    return [(name, arguments.strip()) for name, _, arguments in whole]


def last(name: str) -> str:
    """The arguments of the last such instruction, which is of the last stage."""
    stage = max(i for i, (each, _) in enumerate(instructions()) if each == "FROM")
    return [arguments for each, arguments in instructions()[stage:] if each == name][-1]


def linter(name: str) -> str:
    """A program that the extra [test] brings, where there is a build of it."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


class TestImage:
    def test_hadolint_finds_nothing(self) -> None:
        result = subprocess.run(
            [linter("hadolint"), ROOT / "Dockerfile"], capture_output=True, text=True, check=False
        )
        assert (result.returncode, result.stdout + result.stderr) == (0, "")

    def test_every_base_has_its_version_and_the_same(self) -> None:
        bases = [arguments.split()[0] for name, arguments in instructions() if name == "FROM"]
        assert len(bases) == 2
        assert len(set(bases)) == 1
        assert re.fullmatch(r"python:3\.11[\d.]*-slim-\w+", bases[0])

    def test_it_does_not_run_as_root_whatever_root_is_called(self) -> None:
        user, _, group = last("USER").partition(":")
        assert int(user) > 0
        assert int(group) > 0

    def test_it_serves_the_settings_that_are_put_into_it(self) -> None:
        assert last("EXPOSE") == "8000"
        command = "lmm-classifier serve --config /config/service.yaml --host 0.0.0.0"
        assert json.loads(last("CMD")) == command.split()

    def test_nothing_secret_is_written_into_it(self) -> None:
        given = [arguments for name, arguments in instructions() if name in {"ENV", "ARG", "COPY", "ADD"}]
        assert [arguments for arguments in given if SECRET.search(arguments)] == []
        assert "ADD" not in dict(instructions())

    def test_what_is_copied_is_all_that_is_sent_to_the_build(self) -> None:
        patterns = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        first, *others = [line for line in patterns if line and not line.startswith("#")]
        sent = {line.removeprefix("!") for line in others if line.startswith("!")}
        copied = [a.split()[:-1] for name, a in instructions() if name == "COPY" and "--from" not in a]
        assert first == "*"
        assert sent == {source for sources in copied for source in sources}
        assert all((ROOT / name).exists() for name in sent)

    def test_it_is_of_the_versions_that_were_tried(self) -> None:
        installs = [arguments for name, arguments in instructions() if "pip install" in arguments]
        assert len(installs) == 2
        assert all("--constraint constraints.txt" in arguments for arguments in installs)


@pytest.fixture(params=[200, 401, 503])
def answering(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """A status, and the port of a server that answers with it at /health."""

    class Handler(LocalHandler):
        def do_GET(self) -> None:
            self.say(request.param if self.path == "/health" else 404, b"")

    with running(LocalServer(Handler)) as server:
        yield request.param, server.server_port


def healthy(port: int) -> bool:
    """What the health check of the image says, run as Docker would, of another port."""
    options, _, command = last("HEALTHCHECK").partition(" CMD ")
    assert "--timeout=5s" in options
    python, *arguments = json.loads(command)
    assert python == "python"
    assert "'127.0.0.1', 8000" in arguments[-1]
    there = [argument.replace("8000", str(port)) for argument in arguments]
    asked = subprocess.run(
        [sys.executable, *there],
        env={"http_proxy": "http://127.0.0.1:1", "PATH": ""},
        capture_output=True,
        timeout=20,
        check=False,
    )
    return asked.returncode == 0


def test_the_health_check_tells_a_healthy_service(answering: tuple[int, int]) -> None:
    status, port = answering
    assert healthy(port) == (status == 200)


def test_the_health_check_tells_that_nobody_is_there() -> None:
    assert not healthy(1)


@pytest.fixture(scope="module")
def compose() -> Any:
    return yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))


SERVICES = ("service", "vllm", "milvus")


class TestCompose:
    @pytest.mark.parametrize("profiles", [(), ("vllm",), ("milvus",), ("vllm", "milvus")])
    def test_compose_itself_reads_it_and_starts_what_is_asked_for(self, profiles: tuple[str, ...]) -> None:
        chosen = [option for profile in profiles for option in ("--profile", profile)]
        result = subprocess.run(
            [linter("docker-compose"), "-f", ROOT / "compose.yaml", *chosen, "config", "--format", "json"],
            env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (result.returncode, result.stderr) == (0, "")
        assert set(json.loads(result.stdout)["services"]) == {"service", *profiles}

    def test_one_service_and_two_that_must_be_asked_for(self, compose: Any) -> None:
        assert {name: s.get("profiles") for name, s in compose["services"].items()} == {
            "service": None,
            "vllm": ["vllm"],
            "milvus": ["milvus"],
        }
        assert [need["required"] for need in compose["services"]["service"]["depends_on"].values()] == [False]

    @pytest.mark.parametrize("name", SERVICES)
    def test_each_is_contained(self, compose: Any, name: str) -> None:
        service = compose["services"][name]
        assert PINNED.fullmatch(service["image"])
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["restart"] == "unless-stopped"
        assert re.fullmatch(r"\$\{\w+:-\d+g\}", service["mem_limit"])
        assert not {"privileged", "network_mode", "pid", "ipc", "userns_mode", "cap_add"} & set(service)
        assert "docker.sock" not in json.dumps(service)

    @pytest.mark.parametrize("name", SERVICES)
    def test_each_has_a_health_check(self, compose: Any, name: str) -> None:
        service = compose["services"][name]
        assert "healthcheck" in service or service["build"]["context"] == "."  # it is the image's

    @pytest.mark.parametrize("name", SERVICES)
    def test_no_port_is_open_to_other_machines(self, compose: Any, name: str) -> None:
        ports = compose["services"][name].get("ports", [])
        assert all(port.startswith("127.0.0.1:") for port in ports)
        assert bool(ports) == (name == "service")

    def test_ours_cannot_change_itself_nor_what_it_is_given(self, compose: Any) -> None:
        service = compose["services"]["service"]
        assert service["read_only"] is True
        binds = [volume for volume in service["volumes"] if isinstance(volume, dict)]
        assert [(volume["target"], volume["read_only"]) for volume in binds] == [
            ("/config", True),
            ("/indexes", True),
        ]
        assert service["tmpfs"] == ["/tmp:size=1g"]  # noqa: S108 -- the container's

    def test_the_vector_store_sees_the_service_alone(self, compose: Any) -> None:
        assert compose["services"]["milvus"]["networks"] == ["store"]
        assert compose["networks"]["store"] == {"internal": True}
        assert "store" in compose["services"]["service"]["networks"]

    @pytest.mark.parametrize("name", SERVICES)
    def test_secrets_come_from_files_that_git_and_the_build_do_not_see(self, compose: Any, name: str) -> None:
        service = compose["services"][name]
        told = json.dumps([service.get(key) for key in ("environment", "command", "build")])
        assert not SECRET.search(told)
        for file in service.get("env_file", []):
            assert file["required"] is False
            ignored = subprocess.run(["git", "check-ignore", "-q", file["path"]], cwd=ROOT, check=False)
            assert ignored.returncode == 0

    def test_every_volume_that_is_used_is_declared(self, compose: Any) -> None:
        mounted = [v for s in compose["services"].values() for v in s["volumes"] if isinstance(v, str)]
        assert {volume.partition(":")[0] for volume in mounted} == set(compose["volumes"])
