"""Building on a Ray cluster: two real nodes on this machine, and the same bytes as without it."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from clock import wait_until
from lmm_classifier.corpus.images import DEFAULT_LIMITS
from lmm_classifier.errors import EncoderMismatchError
from lmm_classifier.index.existing import NOTHING
from lmm_classifier.index.ray_runner import Recipe
from lmm_classifier.index.reading import ImageReading
from lmm_classifier.index.shard_builder import Work
from lmm_classifier.models.fake import FakeEncoder
from lmm_classifier.models.spec import ModelSpec
from synthetic import COLOURS, picture, write_corpus

pytest.importorskip("ray", reason="ray is not installed: pip install 'lmm-classifier[ray]'")
ROOT = Path(__file__).parents[2]
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108

# An encoder of another package: writes down who encodes how much, takes its time, and fails if told to.
PLUGIN = """
import os, time
from pathlib import Path
from lmm_classifier.errors import ModelError
from lmm_classifier.models.fake import FakeEncoder

class Slow(FakeEncoder):
    def encode(self, images):
        folder = Path(os.environ["SLOW_NOTES"])
        with (folder / "notes").open("a") as file:
            node = os.environ.get("SLOW_NODE", "")
            file.write(f"{os.getpid()} {node} {len(images)}\\n")
        time.sleep(0.1)
        for _ in range(600 * (folder / "wait").exists()):  # for the other node
            if len({line.split()[1] for line in (folder / "notes").open()}) > 1:
                break
            time.sleep(0.05)
        if (folder / "fail").exists():
            raise ModelError("the weights melted\\nin two lines")
        if (folder / "die").exists():
            os._exit(1)
        if (folder / "crash").exists():
            raise ZeroDivisionError("by a plug-in")
        return super().encode(images)
"""


@dataclass(frozen=True)
class Cluster:
    """Where a cluster listens, what its programs need, and where the encoder takes notes."""

    address: str
    environment: dict[str, str]
    notes: Path

    def cli(self, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self._command(arguments), **self._options(cwd), check=False, timeout=150)

    def start(self, *arguments: str | Path, cwd: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(self._command(arguments), **self._options(cwd))

    def encoded(self) -> list[tuple[int, str, int]]:
        """Process, node and number of photos of every call so far."""
        path = self.notes / "notes"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(pid), node, int(count)) for pid, node, count in (line.split(" ") for line in lines)]

    def forget(self) -> None:
        for path in self.notes.iterdir():
            path.unlink()

    def _command(self, arguments: tuple[str | Path, ...]) -> list[str]:
        return [sys.executable, "-m", "lmm_classifier", *map(str, arguments)]

    def _options(self, cwd: Path) -> dict:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return {"cwd": cwd, "env": self.environment, **pipes}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if SHARED_MEMORY.exists() and not os.access(SHARED_MEMORY, os.W_OK):
        pytest.skip(f"Ray's nodes keep objects in {SHARED_MEMORY}, which cannot be written to here")
    folder = Path(tempfile.mkdtemp(prefix="lr", dir="/tmp"))  # the paths of Ray's sockets must be short
    (folder / "slow-1.0.dist-info").mkdir()
    (folder / "slow_encoder.py").write_text(PLUGIN)
    (folder / "slow-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: slow\nVersion: 1.0\n")
    entry = "[lmm_classifier.encoders]\nslow = slow_encoder:Slow\n"
    (folder / "slow-1.0.dist-info/entry_points.txt").write_text(entry)
    (folder / "token").write_text(secrets.token_hex(32))
    (folder / "notes").mkdir()
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_TMPDIR": str(folder),
        "SLOW_NOTES": str(folder / "notes"),
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    common = ["--num-cpus=1", "--object-store-memory=120000000", "--disable-usage-stats"]
    port = address.rpartition(":")[2]
    head = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder / 'r'}"]
    nodes = []
    try:
        nodes.append(_node(environment | {"SLOW_NODE": "head"}, folder, *head, *common))
        _wait(environment, address, 1)
        nodes.append(_node(environment | {"SLOW_NODE": "second"}, folder, f"--address={address}", *common))
        _wait(environment, address, 2)
        yield Cluster(address, environment, folder / "notes")
    finally:
        for node in nodes:
            _kill_session(node.pid)
            node.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _node(environment: dict[str, str], folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    ray = Path(sys.executable).with_name("ray")
    log = (folder / "nodes.log").open("ab")
    command = [str(ray), "start", "--block", *arguments]
    with log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


def _wait(environment: dict[str, str], address: str, nodes: int) -> None:
    """Until the cluster has so many nodes."""
    host, _, port = address.rpartition(":")
    code = (
        "import ray, sys\nray.init(address=sys.argv[1], log_to_driver=False)\n"
        "print(sum(n['Alive'] for n in ray.nodes()))"
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex((host, int(port))) == 0:
                command = [sys.executable, "-c", code, address]
                asked = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
                if asked.stdout.strip() == str(nodes):
                    return
        time.sleep(0.5)
    raise TimeoutError(f"no cluster of {nodes} nodes at {address}")


def _kill_session(session: int) -> None:
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(ProcessLookupError):  # gone meanwhile
            if os.getsid(int(path.name)) == session:
                os.kill(int(path.name), signal.SIGKILL)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


BUILD = ("index", "build", "corpus", "--shard-rows", "5", "--batch-size", "2", "--max-bad-ratio", "0.5")


@pytest.fixture
def work(tmp_path: Path, cluster: Cluster) -> Path:
    """A folder with a corpus of 40 photos, one of them broken, and the index that a local build makes."""
    cluster.forget()
    corpus = write_corpus(tmp_path / "corpus", per_label=13)
    (corpus / "red" / os.fsdecode(b"\xff.png")).write_bytes(b"\x89PNG\r\n\x1a\n")
    local = cluster.cli(*BUILD, "-o", "local", "--encoder", "slow", cwd=tmp_path)
    assert local.returncode == 2, local.stderr
    cluster.forget()
    return tmp_path


def on_cluster(cluster: Cluster, output: str = "index") -> tuple[str, ...]:
    return (*BUILD, "-o", output, "--encoder", "slow", "--engine", "ray", "--address", cluster.address)


def test_two_nodes_make_what_one_machine_makes(cluster: Cluster, work: Path) -> None:
    (cluster.notes / "wait").touch()
    built = cluster.cli(*on_cluster(cluster), "--json-progress", cwd=work)
    assert built.returncode == 2, built.stderr
    assert built.stdout.startswith("index: 39 images of 3 labels, 39 of them encoded now")
    assert built.stdout.count("\n") == 1
    lines = built.stderr.splitlines()
    assert '"seen": 40, "total": 40, "skipped": 1' in lines[-2]
    assert [line for line in lines if not line.startswith('{"stage": "indexing"')] == lines[-1:]
    assert tree(work / "index") == tree(work / "local")
    assert {node for _, node, _ in cluster.encoded()} == {"head", "second"}
    assert sum(count for *_, count in cluster.encoded()) == 39


def test_a_worker_that_is_killed_costs_its_shard(cluster: Cluster, work: Path) -> None:
    process = cluster.start(*on_cluster(cluster), cwd=work)
    wait_until(lambda: len(cluster.encoded()) >= 4)
    victim = cluster.encoded()[-1][0]
    os.kill(victim, signal.SIGKILL)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    assert output.count("\n") == 1
    assert errors.count("\n") == 1, errors
    assert tree(work / "index") == tree(work / "local")
    assert victim in {pid for pid, *_ in cluster.encoded()}
    assert len({pid for pid, *_ in cluster.encoded()}) == 3
    assert 39 <= sum(count for *_, count in cluster.encoded()) <= 39 + 5


@pytest.mark.parametrize(
    ("how", "said"),
    [
        pytest.param("fail", "error: the weights melted in two lines\n", marks=pytest.mark.slow),
        pytest.param("crash", "ZeroDivisionError: by a plug-in\n", marks=pytest.mark.slow),
        ("die", "take fewer --workers, and build again\n"),
    ],
)
def test_an_encoder_that_fails_on_a_worker_fails_in_one_line(
    cluster: Cluster, work: Path, how: str, said: str
) -> None:
    (cluster.notes / how).touch()
    failed = cluster.cli(*on_cluster(cluster), cwd=work)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.endswith(said)
    assert failed.stderr.count("\n") == 1
    assert not (work / "index").exists()
    cluster.forget()
    assert cluster.cli(*on_cluster(cluster), cwd=work).returncode == 2
    assert tree(work / "index") == tree(work / "local")


def test_synchronising_ends_as_a_build_from_nothing(cluster: Cluster, work: Path) -> None:
    shutil.copytree(work / "local", work / "index")
    corpus = work / "corpus"
    (corpus / "blue/0.png").unlink()
    (corpus / "green/1.png").rename(corpus / "green/renamed.png")
    picture(COLOURS["red"], seed=777).save(corpus / "red/3.png")
    picture(COLOURS["red"], seed=778).save(corpus / "red/new.png")
    changed = cluster.cli(*on_cluster(cluster), cwd=work)
    assert "39 images of 3 labels, 2 of them encoded now" in changed.stdout, changed.stderr
    assert cluster.cli(*BUILD, "-o", "fresh", "--encoder", "slow", cwd=work).returncode == 2
    assert tree(work / "index") == tree(work / "fresh")
    cluster.forget()
    assert "0 of them encoded now" in cluster.cli(*on_cluster(cluster), cwd=work).stdout
    assert cluster.encoded() == []


def test_a_ray_of_its_own(cluster: Cluster, work: Path) -> None:
    built = cluster.cli(*BUILD, "-o", "index", "--encoder", "slow", "--engine", "ray", cwd=work)
    assert (built.returncode, built.stdout.count("\n"), built.stderr.count("\n")) == (2, 1, 1), built.stderr
    assert tree(work / "index") == tree(work / "local")


def test_a_worker_that_would_make_other_vectors_makes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    here, there = FakeEncoder(ModelSpec("fake")), FakeEncoder(ModelSpec("fake", "of another version"))
    work = Work(ImageReading(tmp_path, DEFAULT_LIMITS, None, 1), [here], NOTHING, 2)
    assert Recipe.of(work, lambda: [here]).work() == work
    with pytest.raises(EncoderMismatchError, match="on worker .* name --dtype"):
        Recipe.of(work, lambda: [there]).work()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--engine", "ray", "--address", "127.0.0.1:1"], "no Ray answers at 127.0.0.1:1"),
        (["--engine", "ray", "--address", "ray://x"], "write it as HOST:PORT"),
        (["--address", "127.0.0.1:1"], "add --engine ray"),
        (["--engine", "rya"], "did you mean 'ray'?"),
    ],
)
def test_wrong_addresses_and_engines(tmp_path: Path, arguments: list[str], said: str) -> None:
    write_corpus(tmp_path / "corpus", per_label=2)
    command = [sys.executable, "-m", "lmm_classifier", "index", "build", "corpus", "-o", "index"]
    failed = subprocess.run(
        [*command, "--encoder", "fake", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (failed.returncode, failed.stdout, failed.stderr.count("\n")) == (1, "", 1), failed.stderr
    assert said in failed.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]
