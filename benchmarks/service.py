"""The service under load, with the demo's models; ratios from one run.

    lmm-classifier demo                       # makes indexes/demo, once
    python benchmarks/service.py [together] [load] [soak] [--config config/demo.yaml] [--seconds 30]

`together`: classify_hybrid on distinct scans of digits, 32 clients at once against one that waits for each
answer before it asks again; the service and its models are the same, and so must the answers be. They take
turns, and the figure is the median ratio. `load`: 64 clients upload photos of 2000 x 1500 pixels and 1.6 MB
while the list of operations is asked for every 50 ms. `soak`: good and bad requests for five minutes;
memory, file descriptors and threads of the server from the second minute on.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import yaml
from PIL import Image

from lmm_classifier.checkpoints.digits import picture_of, scans_in

HYBRID = "classify_hybrid"
PARTS = ("together", "load", "soak")


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("parts", nargs="*", default=("together", "load"))
    parser.add_argument("--config", type=Path, default=Path("config/demo.yaml"))
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--operation", default=HYBRID, help="of the part `load`")
    parser.add_argument("--clients", type=int, default=32)
    options = parser.parse_args()
    for part in options.parts:
        if part not in PARTS:
            parser.error(f"there is no part {part!r}; there are {', '.join(PARTS)}")
    if "together" in options.parts:
        with served(options.config, at_once=64) as server:
            asyncio.run(together(server, options.clients, options.rounds))
    if "load" in options.parts:
        with served(options.config) as server:
            asyncio.run(load(server, options.seconds, options.operation))
    if "soak" in options.parts:
        with served(options.config) as server:
            asyncio.run(soak(server, max(options.seconds, 300)))


@dataclass
class Server:
    """The command, running."""

    port: int
    pid: int

    @property
    def resident(self) -> float:
        """MiB."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text("ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    @property
    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    @property
    def threads(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/task").iterdir()))

    async def ask(self, request: bytes) -> Answer:
        """One request on a connection of its own; seconds from the first byte to the last."""
        started = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request)
            content = await reader.read()
        finally:
            writer.close()
        head, _, body = content.partition(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1]) if head else 0
        return Answer(status, head.lower(), body, time.perf_counter() - started)


@dataclass(frozen=True)
class Answer:
    """What came back, and after how long."""

    status: int
    head: bytes
    body: bytes
    seconds: float


@contextmanager
def served(config: Path, **changes: object) -> Iterator[Server]:
    """`lmm-classifier serve` with these settings, some of `service:` changed."""
    settings = yaml.safe_load(config.read_text("utf-8"))
    settings["service"] = {**settings.get("service", {}), **changes}
    with TemporaryDirectory(dir=config.parent) as folder:  # beside it: relative paths start there
        changed = config.parent / f"{Path(folder).name}.yaml"
        changed.write_text(yaml.safe_dump(settings), "utf-8")
        command = [sys.executable, "-m", "lmm_classifier", "serve", "-c", str(changed), "--port", "0"]
        with subprocess.Popen(  # noqa: S603 -- ourselves
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            try:
                said = process.stdout.readline().decode() if process.stdout else ""
                changed.unlink()
                server = Server(int(said.strip().rstrip("/").rpartition(":")[2]), process.pid)
                while asyncio.run(server.ask(get("/ready"))).status != 200:
                    time.sleep(0.2)
                yield server
            finally:
                process.terminate()


def get(path: str) -> bytes:
    """A request."""
    return f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode()


def tasks_for(operation: str) -> str:
    """One task."""
    return json.dumps({"tasks": [{"operation_id": "a", "type": operation}]})


def post(photo: bytes, tasks: str = tasks_for(HYBRID)) -> bytes:
    """An upload."""
    body = (
        b'--b\r\ncontent-disposition: form-data; name="image_file"; filename="a.jpg"\r\n\r\n'
        + photo
        + b"\r\n"
        b'--b\r\ncontent-disposition: form-data; name="tasks_json"\r\n\r\n'
        + tasks.encode()
        + b"\r\n--b--\r\n"
    )
    return (
        b"POST /analyze_image_upload/ HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
        b"content-type: multipart/form-data; boundary=b\r\ncontent-length: %d\r\n\r\n" % len(body)
    ) + body


def label_of(answer: Answer) -> object:
    """The decision, without what it took."""
    data = json.loads(answer.body)["results"]["a"]["data"]
    if isinstance(data, list):
        return [round(value, 4) for value in data]
    return {key: data[key] for key in ("label", "status", "stage", "used_reranker")} | {
        "score": round(data["score"], 4)
    }


async def together(server: Server, clients: int, rounds: int) -> None:
    """Many clients against one."""
    requests = [post(encoded(picture_of(scan.pixels))) for scan in scans_in("query")[: 4 * clients]]
    await clients_at(server, requests[:clients], clients)  # both models are open now
    ratios, rates, expected = [], [], None
    for _ in range(rounds):
        alone, one = await clients_at(server, requests, 1)
        many, all_ = await clients_at(server, requests, clients)
        answers = [list(map(label_of, each)) for each in (one, all_)]
        expected = expected or answers[0]
        same = sum(a == b for row in answers for a, b in zip(row, expected, strict=True)) / 2
        ratios.append(many / alone)
        rates.append((alone, many, same / len(requests)))
    one_rate, many_rate, same_share = (median(column) for column in zip(*rates, strict=True))
    asked = sum(answer["used_reranker"] for answer in expected or [])
    print(f"{len(requests)} scans, {asked} of them looked at twice; medians of {rounds} rounds")
    ratio = f"{median(ratios):.2f} times (target 3), {same_share:.1%} the same"
    print(f"one at a time    {one_rate:8.1f} photos/s")
    print(f"{clients} clients       {many_rate:8.1f} photos/s   {ratio}")


async def clients_at(server: Server, requests: Sequence[bytes], clients: int) -> tuple[float, list[Answer]]:
    """Photos a second, and the answers in order."""
    queue = list(enumerate(requests))
    answers: list[Answer | None] = [None] * len(requests)

    async def client() -> None:
        while queue:
            place, request = queue.pop(0)
            answers[place] = await server.ask(request)

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return len(requests) / (time.perf_counter() - started), [answer for answer in answers if answer]


@dataclass
class Tally:
    """Answers by status."""

    seconds: dict[int, list[float]] = field(default_factory=dict)
    without_retry: int = 0

    def add(self, answer: Answer) -> None:
        self.seconds.setdefault(answer.status, []).append(answer.seconds)
        self.without_retry += answer.status == 503 and b"retry-after" not in answer.head


async def load(server: Server, seconds: float, operation: str = HYBRID) -> None:
    """64 clients with large photos, who come again when they are sent away."""
    requests = [post(large(seed), tasks_for(operation)) for seed in range(16)]
    alone = [label_of(await server.ask(request)) for request in requests]
    idle, end = server.resident, time.monotonic() + seconds
    tally, differing, peak = Tally(), 0, 0.0

    async def client(place: int) -> None:
        nonlocal differing
        while time.monotonic() < end:
            place = (place + 1) % len(requests)
            answer = await server.ask(requests[place])
            tally.add(answer)
            if answer.status == 200:
                differing += label_of(answer) != alone[place]
            else:
                await asyncio.sleep(1)  # as it was told

    async def watch() -> None:
        nonlocal peak
        while time.monotonic() < end:
            peak = max(peak, server.resident)
            await asyncio.sleep(0.2)

    # in a process of its own: this one is busy being 64 clients
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        lists = process.submit(listing, server.port, seconds)
        await asyncio.gather(watch(), *(client(i) for i in range(64)))
        waits = lists.result()
    accepted = sorted(tally.seconds.get(200, [0.0]))
    half, most = at(accepted, 0.5), at(accepted, 0.99)
    statuses = {status: len(times) for status, times in sorted(tally.seconds.items())}
    print(f"64 clients, {seconds:.0f} s, photos of {len(requests[0]) / 1e6:.1f} MB: {statuses}")
    print(f"accepted         {len(accepted) / seconds:8.1f} photos/s   p50 {half:.0f} ms, p99 {most:.0f} ms")
    print(f"                 ratio {most / half:.2f} (target 2); {differing} answers differ")
    print(f"503 without Retry-After: {tally.without_retry}")
    print(
        f"GET /available_operations/   p50 {at(waits, 0.5):.0f} ms, p99 {at(waits, 0.99):.0f} ms (target 100)"
    )
    print(f"resident at most {peak:.0f} MiB, {idle:.0f} before")


def listing(port: int, seconds: float) -> list[float]:
    """Seconds that each of many lists of operations took."""
    waits, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        started = time.perf_counter()
        with closing(HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            connection.request("GET", "/available_operations/")
            answer = connection.getresponse()
            answer.read()
        if answer.status != 200:
            raise SystemExit(f"the list of operations was refused: {answer.status}")
        waits.append(time.perf_counter() - started)
        time.sleep(0.05)
    return waits


async def soak(server: Server, seconds: float) -> None:
    """Good and bad requests by eight clients."""
    good = [post(encoded(picture_of(scan.pixels))) for scan in scans_in("query")[:64]]
    bad = [
        post(b"no photo"),
        post(good[0][:200], "{"),
        get("/nothing"),
        get("/metrics"),
        post(large(1)[:20_000]),
    ]
    requests = [*good, *bad, post(large(2)), get("/available_operations/")]
    started, statuses, samples = time.monotonic(), Counter[int](), list[tuple[float, float, int, int]]()

    async def client(place: int) -> None:
        while time.monotonic() - started < seconds:
            place = (place + 7) % len(requests)
            statuses[(await server.ask(requests[place])).status] += 1

    async def watch() -> None:
        while (now := time.monotonic() - started) < seconds:
            await asyncio.sleep(2)
            if now > min(60, seconds / 3):
                samples.append((now / 60, server.resident, server.descriptors, server.threads))

    await asyncio.gather(watch(), *(client(i) for i in range(8)))
    minutes, resident, descriptors, threads = map(np.asarray, zip(*samples, strict=True))
    slope = np.polyfit(minutes, resident, 1)[0]
    print(f"{seconds / 60:.0f} minutes: {dict(sorted(statuses.items()))}")
    print(f"resident {resident[0]:.0f} to {resident[-1]:.0f} MiB, {slope:+.2f} MiB a minute (target 1)")
    print(f"file descriptors {descriptors.min()} to {descriptors.max()}")
    print(f"threads {threads.min()} to {threads.max()}")


def at(values: Sequence[float], share: float) -> float:
    """The quantile, in milliseconds."""
    return float(np.quantile(values, share)) * 1000


def large(seed: int) -> bytes:
    """A JPEG of 2000 x 1500 pixels and some 1.6 MB."""
    noise = np.random.default_rng(seed).integers(0, 256, (750, 1000, 3), dtype=np.uint8)
    return encoded(Image.fromarray(noise).resize((2000, 1500), Image.Resampling.BICUBIC), quality=80)


def encoded(image: Image.Image, **options: int) -> bytes:
    """As JPEG, or PNG where no quality is asked for."""
    file = io.BytesIO()
    image.save(file, "JPEG" if options else "PNG", **options)
    return file.getvalue()


if __name__ == "__main__":
    main()
