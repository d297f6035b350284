"""The service as it runs: environment, readiness, overload, time, logs, and its end."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from lmm_classifier import HybridClassifier, registry
from lmm_classifier.errors import ConfigError
from lmm_classifier.service.admission import Admission
from lmm_classifier.service.app import create_app
from lmm_classifier.service.metrics import ServiceMetrics
from lmm_classifier.service.schemas import Tasks
from lmm_classifier.service.streaming import ManyAnswers
from served import Child, Reply, Served, child, classifier, encoded, serving
from shell import run
from synthetic import COLOURS, picture

CONFIG = Path(__file__).parents[2] / "config"
PHOTOS = [encoded(picture(COLOURS["red"], seed=seed)) for seed in range(16)]


def all_at_once(service: Served, photos: list[bytes], *tasks: Any) -> list[Reply]:
    with ThreadPoolExecutor(len(photos)) as pool:
        return list(pool.map(lambda photo: service.upload(photo, *tasks), photos))


def counted(service: Served, name: str) -> float:
    text = service.ask("GET", "/metrics").body.decode()
    return float(dict(re.findall(r"^(\S+) (\S+)$", text, re.MULTILINE)).get(name, 0))


def told(result: subprocess.CompletedProcess[str]) -> str:
    """The last line for a person: `serve` logs JSON where no terminal is, and says the rest in it too."""
    message: str = json.loads(result.stderr.splitlines()[-1])["message"]
    return message


def test_it_does_not_start_without_the_gpu_that_is_required(index: Path, tmp_path: Path) -> None:
    classifier(index).config.to_yaml(tmp_path / "service.yaml")
    hidden = {"CUDA_VISIBLE_DEVICES": "", "IMAGE_EMBED_REQUIRE_GPU": "1"}  # also where there is one
    result = run("serve", "-c", "service.yaml", "--port", "0", cwd=tmp_path, **hidden)
    assert result.returncode == 1
    assert result.stdout == ""
    assert told(result).startswith("error: IMAGE_EMBED_REQUIRE_GPU is set and models would run")


def test_the_processor_can_be_forced(index: Path, tmp_path: Path) -> None:
    with child(tmp_path, classifier(index), IMAGE_EMBED_DEVICE="CPU", IMAGE_EMBED_REQUIRE_GPU="0") as (
        service,
        _,
    ):
        assert service.ask("GET", "/health").json == {"status": "ok", "device": "cpu"}


def test_models_are_opened_with_the_first_request_or_before_it(index: Path, tmp_path: Path) -> None:
    captioner = {"describe_image": {"model": {"family": "fake", "weights": "of this test"}}}

    def loaded(service: Served) -> bool:
        listed = service.ask("GET", "/available_operations/").json
        return bool(listed["describe_image"]["loaded"])

    with serving(classifier(index, operations=captioner)) as service:
        assert not loaded(service)
        service.upload(PHOTOS[0], "describe_image")
        assert loaded(service)
    with child(tmp_path, classifier(index, operations=captioner, warm_up=True)) as (warm, _):
        assert loaded(warm)


def test_a_port_that_is_taken_is_said(index: Path, tmp_path: Path, service: Served) -> None:
    classifier(index).config.to_yaml(tmp_path / "service.yaml")
    result = run("serve", "-c", "service.yaml", "--port", str(service.port), cwd=tmp_path)
    assert result.returncode == 1
    assert told(result) == (
        f"error: cannot listen at 127.0.0.1, port {service.port}: is the port taken? --port chooses another"
    )


@pytest.mark.parametrize(
    ("operations", "complaint"),
    [
        ({"describe_imag": {}}, "service.operations.describe_imag: there is no such operation; did you mean"),
        ({"describe_image": {"lenght": 3}}, "service.operations.describe_image: caption.lenght: unknown key"),
        ({"describe_image": {"max_length": -3}}, "caption.max_length"),
        ({"classify_hybrid": {"k": 3}}, "service.operations.classify_hybrid takes no options"),
    ],
)
def test_operations_that_are_set_up_wrongly_stop_the_start(
    operations: dict[str, Any], complaint: str, index: Path
) -> None:
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        create_app(classifier(index, operations=operations))


def test_a_service_without_its_libraries_says_how_to_get_them(index: Path, tmp_path: Path) -> None:
    classifier(index).config.to_yaml(tmp_path / "service.yaml")
    (tmp_path / "uvicorn.py").write_text("raise ModuleNotFoundError('no', name='uvicorn')", "utf-8")
    result = run(
        "serve",
        "-c",
        "service.yaml",
        cwd=tmp_path,
        PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}",
    )
    assert result.stderr == "error: uvicorn is not installed: pip install 'lmm-classifier[service]'\n"
    assert result.returncode == 1


def test_what_comes_together_goes_through_a_step_together(index: Path) -> None:
    with serving(classifier(index, wait_seconds=0.5)) as service:
        replies = all_at_once(service, PHOTOS, "embed_siglip")
        assert {reply.status for reply in replies} == {200}
        assert counted(service, 'lmm_step_photos_sum{step="embed"}') == 16
        assert counted(service, 'lmm_step_photos_count{step="embed"}') <= 2
        alone = [service.result(photo, "embed_siglip")["data"] for photo in PHOTOS[:3]]
    for reply, vector in zip(replies[:3], alone, strict=True):
        assert reply.json["results"]["0"]["data"] == pytest.approx(vector, abs=1e-6)


def test_the_same_photo_is_looked_at_once(index: Path) -> None:
    with serving(classifier(index, wait_seconds=0.5)) as service:
        replies = all_at_once(service, PHOTOS[:1] * 8, "embed_siglip", "embed_dino_v2")
        assert len({reply.body for reply in replies}) == 1
        assert counted(service, 'lmm_step_photos_sum{step="embed"}') == 1  # the two operations have one fake


def test_more_than_there_is_room_for_is_sent_away(index: Path) -> None:
    with serving(classifier(index, at_once=2, wait_seconds=0.8)) as service:
        replies = all_at_once(service, PHOTOS[:6], "embed_siglip")
        assert sorted(reply.status for reply in replies) == [200, 200, 503, 503, 503, 503]
        refused = [reply for reply in replies if reply.status == 503]
        assert {reply.json["code"] for reply in refused} == {"overloaded"}
        assert {reply.headers["retry-after"] for reply in refused} == {"1"}
        assert service.upload(PHOTOS[0], "embed_siglip").status == 200


def test_photos_of_one_request_wait_for_room(index: Path) -> None:
    with serving(classifier(index, at_once=2)) as service:
        files = [("image_files", (f"{i}.png", photo)) for i, photo in enumerate(PHOTOS)]
        tasks = json.dumps([{"operation_id": "a", "type": "embed_siglip"}])
        reply = service.ask("POST", "/analyze_images/", files=files, data={"tasks_json": tasks})
    lines = [json.loads(line) for line in reply.body.decode().splitlines()]
    assert [line["image_url"] for line in lines] == [f"uploaded:{i}.png" for i in range(16)]
    assert {line["results"]["a"]["status"] for line in lines} == {"success"}


def test_photos_that_are_large_together_wait_for_each_other(index: Path) -> None:
    with serving(classifier(index, max_pixels_at_once=24 * 24, wait_seconds=0.2)) as service:
        replies = all_at_once(service, PHOTOS[:4], "embed_siglip")
        assert {reply.status for reply in replies} == {200}
        assert counted(service, 'lmm_step_photos_count{step="embed"}') == 4  # one after the other
        large = encoded(picture(COLOURS["red"], side=100))  # larger than that alone: it is let in alone
        assert service.upload(large, "embed_siglip").status == 200


def test_who_is_not_answered_in_time_is_told_so(index: Path) -> None:
    with serving(classifier(index, request_seconds=0.3, wait_seconds=1.0)) as service:
        reply = service.upload(PHOTOS[0], "embed_siglip")
        assert (reply.status, reply.json["code"]) == (503, "out_of_time")
        assert int(reply.headers["retry-after"]) > 0
        time.sleep(1.0)
        assert counted(service, 'lmm_step_photos_sum{step="embed"}') == 0  # nobody waited for it any more
        assert counted(service, "lmm_photos_inside") == 0


def test_who_goes_away_leaves_room_and_no_work(index: Path) -> None:
    with serving(classifier(index, at_once=2, wait_seconds=1.0)) as service:
        body = httpx2.Request(
            "POST",
            "http://localhost/",
            files={"image_file": PHOTOS[0]},
            data={"tasks_json": json.dumps([{"operation_id": "a", "type": "embed_siglip"}])},
        )
        head = b"".join(b"%b: %b\r\n" % pair for pair in body.headers.raw)
        for _ in range(2):
            with service.connect() as connection:
                connection.sendall(b"POST /analyze_image_upload/ HTTP/1.1\r\n" + head + b"\r\n" + body.read())
                time.sleep(0.2)
        time.sleep(0.3)
        assert counted(service, "lmm_photos_inside") == 0
        time.sleep(1.0)
        assert counted(service, 'lmm_step_photos_sum{step="embed"}') == 0


def test_requests_for_many_leave_room_for_those_for_one(index: Path) -> None:
    tasks = json.dumps([{"operation_id": "a", "type": "describe_image"}])
    files = [("image_files", (f"{i}.png", photo)) for i, photo in enumerate(PHOTOS)]

    def many(service: Served) -> Reply:
        return service.ask("POST", "/analyze_images/", files=files, data={"tasks_json": tasks})

    with serving(classifier(index, at_once=4, wait_seconds=0.2)) as service, ThreadPoolExecutor(6) as pool:
        streams = [pool.submit(many, service) for _ in range(6)]
        time.sleep(0.3)
        assert [service.upload(PHOTOS[0], "embed_siglip").status for _ in range(4)] == [200] * 4
        replies = [stream.result() for stream in streams]
    assert sorted(reply.status for reply in replies) == [200] * 4 + [503] * 2
    whole = [reply.body.decode().splitlines() for reply in replies if reply.status == 200]
    assert all(json.loads(line)["results"]["a"]["status"] == "success" for lines in whole for line in lines)
    assert {len(lines) for lines in whole} == {16}


def test_a_request_for_many_that_nobody_hears_takes_no_place(index: Path) -> None:
    """It is refused when there are too many, so that none may be counted for longer than it lasts."""

    async def gone(_: object = None) -> dict[str, str]:
        raise ConnectionError

    async def ask() -> None:
        admission = Admission(classifier(index), ServiceMetrics())
        try:
            for _ in range(10):
                answer = ManyAnswers(admission, [], ["http://open.test/"], Tasks(tasks=[]))
                with pytest.raises(ExceptionGroup) as raised:
                    await answer({"type": "http"}, gone, gone)
                assert raised.group_contains(ConnectionError)  # and no refusal
        finally:
            admission.close()

    asyncio.run(ask())


def test_of_many_photos_each_has_its_time(index: Path) -> None:
    with serving(classifier(index, request_seconds=0.5, wait_seconds=1.0)) as service:
        tasks = json.dumps([{"operation_id": "a", "type": "embed_siglip"}])
        files = [("image_files", (f"{i}.png", photo)) for i, photo in enumerate(PHOTOS[:10])]
        reply = service.ask("POST", "/analyze_images/", files=files, data={"tasks_json": tasks})
        assert reply.status == 200
        assert [json.loads(line)["code"] for line in reply.body.decode().splitlines()] == ["out_of_time"] * 10
        done = 'lmm_requests_total{method="POST",route="/analyze_images/",status="200"}'
        assert counted(service, done) == 1


def test_a_large_photo_gets_its_turn_among_many_small_ones(index: Path) -> None:
    large = encoded(picture(COLOURS["red"], side=120))
    options = {"max_pixels_at_once": 120 * 120, "wait_seconds": 0.05, "request_seconds": 20.0}
    with serving(classifier(index, **options)) as service:
        ended = threading.Event()

        def small(seed: int) -> None:
            while not ended.is_set():
                service.upload(encoded(picture(COLOURS["blue"], seed=seed, side=60)), "embed_siglip")

        with ThreadPoolExecutor(8) as pool:
            for seed in range(8):
                pool.submit(small, seed)
            time.sleep(0.3)
            status = service.upload(large, "embed_siglip").status  # while they keep on coming
            ended.set()
    assert status == 200


def test_a_model_that_breaks_while_it_is_opened_leaves_the_service_ready(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.BUILTINS["captioner"], "broken", registry.Entry(f"{__name__}:Broken"))
    broken = {"describe_image": {"model": {"family": "broken"}}}
    with serving(classifier(index, operations=broken, warm_up=True)) as service:
        time.sleep(0.5)
        assert service.ask("GET", "/ready").status == 200
        found = service.result(PHOTOS[0], "describe_image")
        assert (found["status"], found["error_code"]) == ("error", "model_failed")


class Broken:
    def __init__(self, spec: object) -> None:
        raise RuntimeError("not one of ours")


def test_the_log_tells_of_each_request_under_its_number(index: Path, tmp_path: Path) -> None:
    failing = {"label_image": {"model": {"family": "fake", "weights": "fails"}}}
    with child(tmp_path, classifier(index, operations=failing)) as (service, process):
        reply = service.upload(PHOTOS[0], "classify_hybrid", "label_image", name="secret name.png")
        number, records = reply.headers["x-request-id"], process.records()
        while not any(r.get("request_id") == number and "route" in r for r in records):  # after the answer
            time.sleep(0.05)
            records = process.records()
    *others, request = [r for r in records if r.get("request_id") == number]
    assert any(r["level"] == "WARNING" and "told to fail" in r["message"] for r in others)
    assert (request["route"], request["status"]) == ("/analyze_image_upload/", 200)
    assert request["tasks"] == {"classify_hybrid": 1, "label_image": 1}
    assert {"decode", "embed", "retrieve", "vote", "open_set"} <= set(request["stages"])
    assert 0 < max(request["stages"].values()) <= request["seconds"] + 0.001  # of which each is a part
    assert "secret name" not in json.dumps(records)
    assert all(record["request_id"] for record in records if record["logger"].endswith("guards"))


@contextmanager
def stuck(index: Path, tmp_path: Path) -> Iterator[Child]:
    """A service of which one thread never comes back."""
    store = tmp_path / "store"
    store.mkdir()
    os.mkfifo(store / "best_models.json")  # reading it waits for a writer that never comes
    with child(tmp_path, classifier(index, store=store)) as (service, process):
        connection = service.connect()
        connection.sendall(b"GET /collections/ HTTP/1.1\r\nhost: localhost\r\n\r\n")
        time.sleep(0.3)
        assert service.ask("GET", "/available_operations/").status == 200
        yield process
        connection.close()


def test_it_stops_though_a_thread_is_stuck(index: Path, tmp_path: Path) -> None:
    with stuck(index, tmp_path) as process:
        assert process.stopped() == 143
        assert "still at work" in process.log.read_text("utf-8")


@pytest.mark.timing
def test_it_stops_within_ten_seconds_though_a_thread_is_stuck(index: Path, tmp_path: Path) -> None:
    with stuck(index, tmp_path) as process:
        started = time.monotonic()
        process.stopped()
        assert time.monotonic() - started <= 10


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_idle_it_stops_without_having_to_be_forced(
    sent: signal.Signals, code: int, index: Path, tmp_path: Path
) -> None:
    with child(tmp_path, classifier(index)) as (service, process):
        service.upload(PHOTOS[0], "embed_siglip")
        assert process.stopped(sent) == code
        assert "still at work" not in process.log.read_text("utf-8")


@pytest.mark.timing
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_idle_it_stops_at_once(sent: signal.Signals, index: Path, tmp_path: Path) -> None:
    with child(tmp_path, classifier(index)) as (service, process):
        service.upload(PHOTOS[0], "embed_siglip")
        started = time.monotonic()
        process.stopped(sent)
        assert time.monotonic() - started <= 4


def test_too_many_connections_are_told_so(index: Path, tmp_path: Path) -> None:
    with child(tmp_path, classifier(index, connections=3)) as (service, _):
        held = [service.connect() for _ in range(3)]
        time.sleep(0.2)
        reply = service.ask("GET", "/health")
        assert (reply.status, reply.json["code"], reply.headers["retry-after"]) == (503, "overloaded", "1")
        for connection in held:
            connection.close()
        time.sleep(0.2)
        assert service.ask("GET", "/health").status == 200


def test_threads_of_a_service_that_stopped_are_gone(index: Path) -> None:
    before = threading.active_count()
    with serving(classifier(index)) as service:
        service.upload(PHOTOS[0], "embed_siglip")
    time.sleep(0.3)
    assert threading.active_count() <= before + 1  # the warm-up, at most


@pytest.mark.slow
def test_the_demos_settings_serve_once_the_demo_has_run(tmp_path: Path) -> None:
    shutil.copytree(CONFIG, tmp_path / "config")
    early = run("serve", "--config", "config/demo.yaml", "--port", "0", cwd=tmp_path)
    assert (early.returncode, early.stderr.count("\n")) == (1, 1)
    assert "is not an index" in early.stderr
    assert run("demo", cwd=tmp_path).returncode == 0
    served = HybridClassifier.from_yaml(tmp_path / "config/demo.yaml")
    with child(tmp_path / "config", served) as (service, _):
        photo = next((tmp_path / "indexes/demo/corpus/query/five").glob("*.png"))
        found = service.result(photo.read_bytes(), "classify_hybrid")["data"]
        assert (found["label"], found["status"]) == ("five", "known")
        assert found["label"] == served.classify(photo).label
