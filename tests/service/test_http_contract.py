"""The service as a client sees it over HTTP. What is fetched stands in test_urls.py."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from served import Served, as_tasks, classifier, encoded, serving
from synthetic import COLOURS, picture

RED = encoded(picture(COLOURS["red"], seed=1))
FIELDS = [
    "status",
    "data",
    "cropped_image_bbox",
    "cropped_image_base64",
    "error_message",
]


def somebody(box: tuple[int, int, int, int] = (10, 20, 50, 60), colour: Any = "white") -> Image.Image:
    """A bright box in the dark, which the fake detectors take for a person, and for a face."""
    image = Image.new("RGB", (80, 100), "black")
    image.paste(Image.new("RGB", (box[2] - box[0], box[3] - box[1]), colour), box[:2])
    return image


def test_an_upload_is_analysed(service: Served) -> None:
    reply = service.upload(RED, "classify_hybrid")
    assert reply.status == 200
    assert list(reply.json) == ["image_url", "results"]
    assert reply.json["image_url"] == "uploaded:photo.png"
    assert reply.json["results"]["0"]["data"]["label"] == "red"


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        ("../../etc/passwd.png", "uploaded:passwd.png"),
        ("C:\\photos\\me.png", "uploaded:me.png"),
        ("a\x1b[31mb.png", "uploaded:a\ufffd[31mb.png"),
        ("x" * 300, "uploaded:" + "x" * 200),
        ("<img src=x>.png", "uploaded:<img src=x>.png"),  # JSON, not markup: the page puts it in as text
        ("Fotografía ü.png", "uploaded:Fotografía ü.png"),
    ],
)
def test_the_name_of_an_upload_comes_back_without_path_and_control_characters(
    sent: str, told: str, service: Served
) -> None:
    escaped = sent.replace("\x1b", "%1B")  # httpx2 escapes it; the next test sends it as it is
    assert service.upload(RED, name=sent).json["image_url"] in (told, f"uploaded:{escaped}")


def test_a_control_character_in_the_name_of_an_upload_is_replaced(service: Served) -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="image_file"; filename="a\x1b[31mb.png"\r\n\r\n'
    tasks = b'\r\n--x\r\nContent-Disposition: form-data; name="tasks_json"\r\n\r\n[]\r\n--x--\r\n'
    kind = {"content-type": "multipart/form-data; boundary=x"}
    reply = service.ask("POST", "/analyze_image_upload/", kind, content=head + RED + tasks)
    assert reply.json == {"image_url": "uploaded:a\ufffd[31mb.png", "results": {}}


def test_the_operations_say_what_they_take(service: Served) -> None:
    listed = service.ask("GET", "/available_operations/").json
    assert list(listed) == [
        "detect_bounding_box",
        "embed_clip_vit_b_32",
        "embed_dino_v2",
        "embed_dino_v3",
        "embed_siglip",
        "classify",
        "describe_image",
        "classify_hybrid",
        "label_image",
        "segment",
        "segment_panoptic",
    ]
    assert listed["embed_dino_v2"]["allowed_targets"] == ["whole_image", "prominent_person", "prominent_face"]
    assert listed["embed_dino_v2"]["default_target"] == "whole_image"
    assert listed["detect_bounding_box"]["default_target"] == "prominent_person"
    assert listed["describe_image"]["parameters"]["properties"]["max_length"]["default"] == 50
    assert listed["classify"]["parameters"]["required"] == ["collection_id"]
    assert list(listed["classify"])[:3] == ["description", "allowed_targets", "default_target"]


def test_there_are_documents_of_the_interface(service: Served) -> None:
    assert b"swagger" in service.ask("GET", "/docs").body
    described = service.ask("GET", "/openapi.json").json
    assert {"/analyze_image/", "/analyze_image_upload/", "/analyze_images/"} <= set(described["paths"])
    upload = described["paths"]["/analyze_image_upload/"]["post"]
    assert set(upload["responses"]) >= {"200", "400", "401", "413", "422", "503"}


def test_health_readiness_and_metrics_are_told(service: Served) -> None:
    assert service.ask("GET", "/health").json["status"] == "ok"
    assert service.ask("GET", "/ready").json == {"status": "ready"}
    service.upload(RED, "embed_siglip")
    counted = service.ask("GET", "/metrics").body.decode()
    done = 'lmm_requests_total{method="POST",route="/analyze_image_upload/",status="200"}'
    assert float(re.findall(rf"^{re.escape(done)} (\S+)$", counted, re.MULTILINE)[0]) >= 1
    assert 'lmm_step_photos_count{step="embed"}' in counted


@pytest.mark.parametrize(
    "tasks",
    [
        [{"operation_id": "", "type": "embed_siglip"}],
        [{"type": "embed_siglip"}],
        [{"operation_id": "a"}],
        [{"operation_id": "a", "type": "embed_siglip", "params": 3}],
        [{"operation_id": "a", "type": "embed_siglip", "parameters": {}}],
        [{"operation_id": 3, "type": "embed_siglip"}],
    ],
)
def test_a_malformed_task_is_refused_and_its_place_named(tasks: Any, service: Served) -> None:
    reply = service.ask(
        "POST", "/analyze_image_upload/", files={"image_file": RED}, data={"tasks_json": json.dumps(tasks)}
    )
    assert (reply.status, reply.json["code"]) == (400, "malformed_tasks")
    assert reply.json["detail"].startswith("tasks_json: tasks.0")


@pytest.mark.parametrize(
    "params", [{"unheard_of": 1}, {"padding": -1}, {"padding": "wide"}, {"target": "moon"}]
)
def test_unknown_and_impossible_params_are_refused(params: dict[str, Any], service: Served) -> None:
    found = service.result(RED, "embed_siglip", **params)
    assert (found["status"], found["error_code"]) == ("skipped", "invalid_parameters")
    assert next(iter(params)) in found["error_message"]


def test_without_tasks_the_photo_is_still_looked_at(service: Served) -> None:
    assert service.upload(RED).json["results"] == {}
    assert service.upload(b"no photo").status == 400


def test_a_request_has_at_most_32_tasks_and_short_params(service: Served) -> None:
    assert service.upload(RED, *["detect_bounding_box"] * 32).status == 200
    reply = service.upload(RED, *["detect_bounding_box"] * 33)
    assert (reply.status, reply.json["code"]) == (422, "too_many_tasks")
    reply = service.upload(RED, ("embed_siglip", {"unheard_of": "x" * 20_000}))
    assert (reply.status, reply.json["code"]) == (400, "malformed_tasks")


def test_results_keep_the_order_of_the_tasks_and_no_id_comes_twice(service: Served) -> None:
    names = ["segment_panoptic", "embed_siglip", "describe_image", "label_image"]
    results = service.upload(RED, *names).json["results"]
    assert list(results) == ["0", "1", "2", "3"]
    twice = json.dumps([*as_tasks("embed_siglip"), *as_tasks("label_image")])
    reply = service.ask(
        "POST", "/analyze_image_upload/", files={"image_file": RED}, data={"tasks_json": twice}
    )
    assert (reply.status, reply.json["code"]) == (400, "malformed_tasks")
    assert "twice" in reply.json["detail"]


def test_all_documented_fields_are_there_in_their_order(service: Served) -> None:
    for operation in ("embed_siglip", "detect_bounding_box", "no_such_operation"):
        found = service.result(RED, operation)
        assert list(found)[:5] == FIELDS
    assert found["data"] is None


def test_what_is_not_there_is_skipped_and_what_breaks_is_an_error(index: Path) -> None:
    failing = {"label_image": {"model": {"family": "fake", "weights": "fails"}}}
    missing = {"describe_image": {"model": {"family": "blip", "weights": "/home/nobody/blip"}}}
    with serving(classifier(index, operations=failing | missing)) as service:
        unknown = service.result(RED, "paint_image")
        assert (unknown["status"], unknown["error_code"]) == ("skipped", "unknown_operation")
        assert "embed_siglip" in unknown["error_message"]
        reply = service.upload(RED, "label_image", "embed_siglip", "describe_image")
        broken, fine, absent = reply.json["results"].values()
        assert (broken["status"], broken["error_code"]) == ("error", "model_failed")
        assert (absent["status"], absent["error_code"]) == ("error", "model_unavailable")
        assert fine["status"] == "success"  # the others go on
        assert b"told to fail" not in reply.body  # what a model says is for the log
        assert b"nobody" not in reply.body


@pytest.mark.parametrize(
    "content", [b"", b"no photo", RED[:200], b"<svg/>", encoded(picture((1, 2, 3)), "ICO")]
)
def test_what_is_no_photo_is_refused_as_a_whole(content: bytes, service: Served) -> None:
    reply = service.upload(content, "embed_siglip")
    assert reply.status == 400
    assert set(reply.json) == {"detail", "code"}
    assert reply.json["code"] in ("empty_file", "unsupported_format", "truncated", "corrupt")


@pytest.mark.parametrize(
    "text",
    ["", "{", "3", "null", "[3]", '"a"', "{}", '{"tasks": null}', "[" * 100_000, "1" * 5000, "NaN", "{'a'}"],
)
def test_tasks_that_are_no_list_in_json_are_refused(text: str, service: Served) -> None:
    reply = service.ask(
        "POST", "/analyze_image_upload/", files={"image_file": RED}, data={"tasks_json": text}
    )
    assert reply.status in ((400,) if text else (400, 422))
    assert set(reply.json) == {"detail", "code"}


def test_the_photo_is_upright_rgb_and_of_its_first_frame(service: Served) -> None:
    lying = somebody().transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it clockwise to see it as it was
    turned = encoded(lying, "PNG", exif=exif)
    assert service.result(turned, "detect_bounding_box")["data"] == [10, 20, 50, 60]

    veiled = Image.new("RGBA", (40, 40), (255, 0, 0, 0))  # red, and wholly transparent: it lies on white
    veiled.paste((0, 0, 0, 255), (0, 0, 40, 10))
    assert service.result(encoded(veiled), "detect_bounding_box")["data"] == [0, 10, 40, 40]

    frames = [somebody((0, 0, 10, 10)), somebody((30, 30, 40, 40))]
    moving = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert service.result(moving, "detect_bounding_box")["data"] == [0, 0, 10, 10]


def test_every_answer_has_a_number_of_its_own(service: Served) -> None:
    replies = [
        service.ask("GET", "/health"),
        service.upload(RED),
        service.upload(b"", "x"),
        service.ask("GET", "/x"),
    ]
    numbers = {reply.headers["x-request-id"] for reply in replies}
    assert len(numbers) == 4
    assert all(re.fullmatch("[0-9a-f]{32}", number) for number in numbers)


def test_box_and_crop_are_those_of_the_person(service: Served) -> None:
    image = somebody((10, 20, 50, 60), "yellow")
    found = service.result(encoded(image), "embed_siglip", target="prominent_person")
    assert found["cropped_image_bbox"] == [10, 20, 50, 60]
    crop = Image.open(io.BytesIO(base64.b64decode(found["cropped_image_base64"])))
    assert crop.format == "PNG"
    assert np.array_equal(np.asarray(crop), np.asarray(image.crop((10, 20, 50, 60))))
    found = service.result(encoded(image), "embed_siglip", target="prominent_person", include_crop=False)
    assert found["cropped_image_bbox"] == [10, 20, 50, 60]
    assert found["cropped_image_base64"] is None


def test_nothing_is_there_under_other_names(service: Served) -> None:
    assert service.ask("GET", "/nothing").json == {"detail": "Not Found", "code": "not_found"}
    assert service.ask("GET", "/analyze_image/").json["code"] == "no_such_method"
    assert service.ask("POST", "/analyze_image").status == 404
