"""Shards made by the machines of a Ray cluster: one job per shard, one worker per machine or per GPU."""

from __future__ import annotations

import io
import logging
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from lmm_classifier.errors import ConfigError, EncoderMismatchError, LmmClassifierError, ModelError
from lmm_classifier.index.existing import NOTHING, Task, open_existing
from lmm_classifier.index.reading import ImageReading
from lmm_classifier.index.shard_builder import BuiltShard, MakesVectors, OnTaken, Work, make_shard
from lmm_classifier.optional import extra
from lmm_classifier.types import EncoderContract

log = logging.getLogger(__name__)

_OpenEncoders = Callable[[], Sequence[MakesVectors]]
_RETRIES = 3
"""Workers lost with one and the same shard after which its photos are suspected instead of the machines."""
_REACHED_S = 10.0
_THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True, slots=True)
class RayRunner:
    """Has the workers of a Ray cluster make the shards.

    The workers see photos and index under the same paths as this machine, and have this package and the
    plug-ins installed; PYTHONPATH is handed on. A worker that dies costs the shard it was at, which
    another one makes again.

    Attributes:
        open_encoders: opens on a worker the encoders that the build has here; must be picklable.
        address: of a running cluster, such as "10.0.0.1:6379"; None starts a Ray on this machine.
        gpus: one worker per GPU of the cluster, if it has any, instead of one per machine.
    """

    open_encoders: _OpenEncoders
    address: str | None = None
    gpus: bool = True

    def run(
        self, jobs: Iterable[tuple[int, Sequence[Task]]], work: Work, on_taken: OnTaken
    ) -> Iterator[tuple[int, BuiltShard]]:
        """As `Runner.run`; `on_taken` is called for all tasks of a shard when the shard arrives.

        Raises:
            ConfigError: Ray is not installed, is in use by this process already, or is not at the address.
            LmmClassifierError: what a worker raised.
            ModelError: workers died again and again, or the cluster went away.
        """
        todo = [Job(number, tuple(tasks)) for number, tasks in jobs]
        if not todo:
            return
        with _connected(self.address) as ray:
            try:
                for made in self._made(ray, todo, work):
                    if isinstance(made.outcome, LmmClassifierError):
                        raise made.outcome
                    indexed = set(made.outcome.indexed)
                    for position in range(len(made.outcome.stats)):
                        on_taken(position in indexed)
                    yield made.number, made.outcome
            except ray.exceptions.RayError as error:
                raise ModelError(
                    f"the Ray workers failed: {_reason(error)} Finished shards are kept: see Ray's logs, "
                    "give the machines more memory or take fewer --workers, and build again"
                ) from error

    def _made(self, ray: Any, jobs: Sequence[Job], work: Work) -> Iterator[Made]:
        """What the workers made of the jobs, as it comes."""
        found = ray.cluster_resources()
        gpus = int(found.get("GPU", 0)) if self.gpus else 0
        machines = sum(node["Alive"] for node in ray.nodes())
        size = min(gpus or machines, len(jobs))
        log.info("Ray: %d workers make %d shards", size, len(jobs))
        rows = ray.data.from_items([{"job": job} for job in jobs], override_num_blocks=len(jobs)).map(
            Worker,
            fn_constructor_args=(Recipe.of(work, self.open_encoders),),
            compute=ray.data.ActorPoolStrategy(
                min_size=1, max_size=size, initial_size=size, max_tasks_in_flight_per_actor=1
            ),
            num_cpus=1,
            num_gpus=1 if gpus else 0,
            scheduling_strategy="SPREAD",
            max_restarts=_RETRIES,
            max_task_retries=_RETRIES,
        )
        return (row["made"] for row in rows.iter_rows())


@dataclass(frozen=True, slots=True)
class Job:
    """What travels to a worker: the number of a shard, and its tasks."""

    number: int
    tasks: tuple[Task, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """What comes back. An error is a value here: raised, Ray would bring its text and not its class."""

    number: int
    outcome: BuiltShard | LmmClassifierError


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a worker gets what the build has here: by opening it again.

    Attributes:
        open_encoders: opens the encoders.
        contracts: which they must be.
        reading: how photos are read; its root is absolute.
        former: the index that is there already, an absolute path; None where there is none.
        batch_size: images per model call.
        folder: where relative paths, such as those of weights, start.
        threads: OMP_NUM_THREADS here; None where it is not set.
    """

    open_encoders: _OpenEncoders
    contracts: tuple[EncoderContract, ...]
    reading: ImageReading
    former: Path | None
    batch_size: int
    folder: Path
    threads: str | None

    @classmethod
    def of(cls, work: Work, open_encoders: _OpenEncoders) -> Recipe:
        """The recipe for the work of this process."""
        former = work.existing.folder
        return cls(
            open_encoders=open_encoders,
            contracts=tuple(encoder.contract for encoder in work.encoders),
            reading=replace(work.reading, root=work.reading.root.absolute()),
            former=former.absolute() if former else None,
            batch_size=work.batch_size,
            folder=Path.cwd(),
            threads=os.environ.get(_THREADS),
        )

    def work(self) -> Work:
        """Open everything.

        Raises:
            EncoderMismatchError: the encoders are others on this machine, such as in another dtype.
            LmmClassifierError: encoders or former index cannot be opened.
        """
        if self.threads is None:  # Ray sets 1: slower, and sums in another order than here
            os.environ.pop(_THREADS, None)
        if self.folder.is_dir():  # else there are no relative paths to be found on this machine
            os.chdir(self.folder)
        encoders = self.open_encoders()
        for encoder, contract in zip(encoders, self.contracts, strict=True):
            if encoder.contract.fingerprint != contract.fingerprint:
                raise EncoderMismatchError(
                    f"encoder {contract.name} is {encoder.contract.dtype} {encoder.contract.fingerprint} on "
                    f"worker {os.uname().nodename} and {contract.dtype} {contract.fingerprint} here; "
                    "name --dtype and --device, and use the same weights and versions everywhere"
                )
        existing = open_existing(self.former, self.contracts) if self.former else NOTHING
        return Work(self.reading, encoders, existing, self.batch_size)


class Worker:
    """Makes shards in a process of Ray's; everything is opened for the first and kept."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._work: Work | None = None

    def __call__(self, row: Mapping[str, Job]) -> dict[str, Made]:
        """One job to what was made of it."""
        job = row["job"]
        try:
            return {"made": Made(job.number, self._shard(job))}
        except LmmClassifierError as error:
            return {"made": Made(job.number, error)}

    def _shard(self, job: Job) -> BuiltShard:
        try:
            if self._work is None:
                self._work = self._recipe.work()
            return make_shard(job.tasks, self._work, lambda _: None)
        except LmmClassifierError:
            raise
        except Exception as error:
            where = os.uname().nodename
            raise ModelError(f"worker {where} failed: {type(error).__name__}: {error}") from error


def check_installed() -> None:
    """Say before hours of work that Ray is missing.

    Raises:
        ConfigError: it is; says how to install it.
    """
    with extra("ray", "ray"):
        import ray  # noqa: F401


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """The module ray, connected for the length of the block; what it prints is logged instead.

    Raises:
        ConfigError: as `RayRunner.run`.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what matters comes as an exception
    with warnings.catch_warnings(), _stdout_kept_clean():
        warnings.simplefilter("ignore")
        with extra("ray", "ray"):
            import ray
            import ray.data
        if ray.is_initialized():
            raise ConfigError("this process uses a Ray already; call ray.shutdown() first")
        with _own_signals(), _native_stderr_silenced():
            _connect(ray, address)
        try:
            context = ray.data.DataContext.get_current().copy()
            context.enable_progress_bars = context.print_on_execution_start = False
            context.execution_options.preserve_order = False
            context.execution_no_progress_timeout_s = -1  # a shard may take longer than any guess
            logging.getLogger("ray.data").setLevel(logging.CRITICAL)
            with ray.data.DataContext.current(context):
                yield ray
        finally:
            with redirect_stdout(_Logged()):  # what Ray has held back is printed by this very thread
                ray.shutdown()


def _connect(ray: Any, address: str | None) -> None:
    if address:
        _check_reachable(address)
    handed_on = {name: os.environ[name] for name in (_THREADS, "HF_HUB_OFFLINE") if name in os.environ}
    if path := os.environ.get("PYTHONPATH"):
        handed_on["PYTHONPATH"] = os.pathsep.join(
            str(Path(part).absolute()) for part in path.split(os.pathsep) if part
        )
    try:
        ray.init(
            address=address or "local",
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
            runtime_env={"env_vars": handed_on},
        )
    except (ray.exceptions.RayError, ValueError, RuntimeError, OSError) as error:
        what = f"the Ray at {address} refuses" if address else "Ray does not start on this machine"
        raise ConfigError(f"{what}: {_reason(error)}") from error


def _check_reachable(address: str) -> None:
    """Ray itself would try for many minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"{address!r} is no address of a Ray cluster; write it as HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _REACHED_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"no Ray answers at {address}: {_reason(error)}; start one there with `ray start --head`, or "
            "leave out --address"
        ) from error


def _reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray puts a handler of its own in the place of ours, which would change the exit code."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


@contextmanager
def _native_stderr_silenced() -> Iterator[None]:
    """Ray's core says on the way which log level it was given; failures come as exceptions."""
    kept = os.dup(2)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def _stdout_kept_clean() -> Iterator[None]:
    """Ray's threads print what happens on the cluster; the standard output is for answers."""
    kept = sys.stdout
    sys.stdout = _WithoutRay(kept)
    try:
        yield
    finally:
        sys.stdout = kept


class _Logged(io.TextIOBase):
    """A stream whose lines are logged."""

    def write(self, text: str) -> int:
        if text.strip():
            log.info("Ray: %s", text.strip())
        return len(text)


class _WithoutRay(io.TextIOBase):
    """A stream that hands on everything but what Ray's threads write."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._logged = _Logged()

    def write(self, text: str) -> int:
        of_ray = threading.current_thread().name.startswith("ray_")
        return (self._logged if of_ray else self._stream).write(text)

    def flush(self) -> None:
        self._stream.flush()
