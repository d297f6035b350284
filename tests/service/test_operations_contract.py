"""What each operation does. The fakes are followed by hand: what is bright is a person, and a face."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from lmm_classifier import CollectionClassifier, HybridClassifier
from lmm_classifier.models.spec import ModelSpec
from served import FAKE, Served, classifier, encoded, serving
from synthetic import COLOURS, picture

# of pycocotools' decode under numpy 2; the package does not call it
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
BOX = (10, 20, 50, 60)
NOBODY = Image.new("RGB", (80, 100), "black")
EMBEDDINGS = ("embed_clip_vit_b_32", "embed_dino_v2", "embed_dino_v3", "embed_siglip")


def somebody(colour: str = "white") -> Image.Image:
    image = NOBODY.copy()
    image.paste(Image.new("RGB", (40, 40), colour), BOX[:2])
    return image


def colours_of(image: Image.Image) -> np.ndarray:
    """The fake encoder's raw vector, after its description: mean colours on a 4 x 4 grid, plus one."""
    grid = np.asarray(image.resize((4, 4), Image.Resampling.BOX), np.float32)
    return grid.reshape(-1) + 1


@pytest.mark.parametrize("target", ["whole_image", "prominent_person", "prominent_face"])
def test_an_operation_looks_where_it_is_told(target: str, service: Served) -> None:
    found = service.result(encoded(somebody()), "describe_image", target=target)
    size = "80 by 100" if target == "whole_image" else "40 by 40"
    assert found["data"] == f"a picture of {size} pixels"
    if target == "whole_image":
        assert found["region"] is None
    else:
        assert found["region"] == {
            "requested": target,
            "used": target,
            "fallback": None,
            "bbox": [10, 20, 50, 60],
            "score": 1.0,
        }


def test_a_target_that_is_not_for_the_operation_is_refused(service: Served) -> None:
    found = service.result(encoded(somebody()), "detect_bounding_box", target="whole_image")
    assert (found["status"], found["error_code"]) == ("skipped", "invalid_parameters")
    assert "prominent_person, prominent_face" in found["error_message"]


def test_an_unknown_face_context_is_refused(service: Served) -> None:
    found = service.result(encoded(somebody()), "embed_siglip", target="prominent_face", face_context="moon")
    assert found["error_code"] == "invalid_parameters"


def test_a_person_is_looked_for_unless_told_otherwise(service: Served) -> None:
    found = service.result(encoded(somebody()), "detect_bounding_box")
    assert found["data"] == [10, 20, 50, 60]
    assert found["region"]["requested"] == "prominent_person"


def test_nobody_is_null_and_a_broken_detector_is_an_error(service: Served, index: Path) -> None:
    found = service.result(encoded(NOBODY), "detect_bounding_box")
    assert (found["status"], found["data"], found["region"]) == ("success", None, None)
    with serving(classifier(index, persons=ModelSpec("fake", "fails"))) as broken:
        found = broken.result(encoded(somebody()), "detect_bounding_box")
    assert (found["status"], found["error_code"]) == ("error", "model_failed")


def test_without_a_person_the_whole_image_is_taken_and_said_so(service: Served) -> None:
    found = service.result(encoded(NOBODY), "describe_image", target="prominent_person")
    assert found["data"] == "a picture of 80 by 100 pixels"
    assert found["cropped_image_bbox"] is None
    assert found["cropped_image_base64"] is None
    assert found["region"] == {
        "requested": "prominent_person",
        "used": "whole_image",
        "fallback": "no person was found",
        "bbox": [0, 0, 80, 100],
        "score": None,
    }


@pytest.mark.parametrize(("on_missing", "status"), [("skip", "skipped"), ("error", "error")])
def test_without_a_person_it_is_skipped_or_an_error_where_the_request_says_so(
    on_missing: str, status: str, service: Served
) -> None:
    found = service.result(
        encoded(NOBODY), "describe_image", target="prominent_person", on_missing=on_missing
    )
    assert (found["status"], found["error_code"], found["data"]) == (status, "no_person", None)


def test_without_a_face_an_operation_on_the_face_is_skipped(index: Path) -> None:
    with serving(classifier(index, faces=ModelSpec("fake", "hat"))) as service:
        found = service.result(encoded(somebody()), "embed_siglip", target="prominent_face")
    assert (found["status"], found["error_code"]) == ("skipped", "no_face")


def test_a_face_of_nobody_is_not_looked_for_elsewhere(index: Path) -> None:
    with serving(classifier(index, persons=ModelSpec("fake", "car"))) as service:
        found = service.result(encoded(somebody()), "embed_siglip", target="prominent_face")
        assert (found["status"], found["error_code"]) == ("skipped", "no_person")
        found = service.result(
            encoded(somebody()), "embed_siglip", target="prominent_face", face_context="whole_image"
        )
        assert found["cropped_image_bbox"] == [10, 20, 50, 60]


@pytest.mark.parametrize("operation", EMBEDDINGS)
def test_vectors_are_normalised_unless_told_otherwise(operation: str, service: Served) -> None:
    image = picture(COLOURS["green"], seed=3)
    raw = colours_of(image)
    found = service.result(encoded(image), operation)
    assert found["data"] == pytest.approx((raw / np.linalg.norm(raw)).tolist(), abs=1e-6)
    assert found["encoder"]["normalized"] is True
    assert (found["encoder"]["name"], found["encoder"]["dim"]) == ("fake", 48)
    found = service.result(encoded(image), operation, normalize=False)
    assert found["data"] == pytest.approx(raw.tolist(), abs=1e-3)
    assert found["encoder"]["normalized"] is False


@pytest.mark.parametrize(("colour", "belongs"), [("red", True), ("blue", False)])
def test_membership_is_that_of_the_library(colour: str, belongs: bool, service: Served, store: Path) -> None:
    photo = encoded(picture(COLOURS[colour], seed=500))
    found = service.result(photo, "classify", collection_id=7)
    [expected] = CollectionClassifier(store).classify(photo, [7])
    assert found["data"] == {"is_in_collection": belongs, "probability": expected.probability}
    assert service.result(photo, "classify", collection_id="7")["data"] == found["data"]


@pytest.mark.parametrize("wrong", [None, 7.9, True, "", [7], {}])
def test_a_collection_id_that_is_no_number_and_no_name_is_refused(wrong: object, service: Served) -> None:
    found = service.result(encoded(NOBODY), "classify", collection_id=wrong)
    assert (found["status"], found["error_code"]) == ("skipped", "invalid_parameters")


def test_a_target_that_contradicts_the_collection_is_refused(service: Served) -> None:
    photo = encoded(somebody("blue"))
    assert service.result(photo, "classify", collection_id=7, target="whole_image")["status"] == "success"
    found = service.result(photo, "classify", collection_id=7, target="prominent_person")
    assert (found["status"], found["error_code"]) == ("skipped", "invalid_parameters")


def test_the_box_is_the_one_that_the_classifier_looked_at(index: Path, store: Path) -> None:
    image = somebody("#9090ff")
    with serving(classifier(index, store=store)) as service:
        whole = service.result(encoded(image), "classify", collection_id=7)
        person = service.result(encoded(image), "classify", collection_id=8)
        nobody = service.result(encoded(NOBODY), "classify", collection_id=8)
        face = service.result(encoded(NOBODY), "classify", collection_id=9)
    assert (whole["cropped_image_bbox"], whole["cropped_image_base64"]) == (None, None)
    assert person["cropped_image_bbox"] == [10, 20, 50, 60]
    assert person["cropped_image_base64"] is not None
    assert person["region"]["requested"] == "prominent_person"
    assert (nobody["cropped_image_bbox"], nobody["region"]["used"]) == (None, "whole_image")
    assert (face["status"], face["error_code"]) == ("skipped", "no_person")


def test_a_collection_that_does_not_exist_is_skipped(service: Served, index: Path, tmp_path: Path) -> None:
    found = service.result(encoded(NOBODY), "classify", collection_id=404)
    assert (found["status"], found["error_code"]) == ("skipped", "unknown_collection")
    with serving(classifier(index, store=tmp_path / "none")) as empty:
        found = empty.result(encoded(NOBODY), "classify", collection_id=7)
        assert (found["status"], found["error_code"]) == ("skipped", "unknown_collection")
        assert empty.ask("GET", "/collections/").json == []


@pytest.mark.parametrize(
    ("words", "caption"), [(2, "a picture of 80 by"), (50, "a picture of 80 by 100 pixels")]
)
def test_a_caption_has_at_most_as_many_new_tokens_as_asked_for(
    words: int, caption: str, service: Served
) -> None:
    found = service.result(encoded(NOBODY), "describe_image", max_length=words)
    assert found["data"] == caption
    if words == 50:
        assert service.result(encoded(NOBODY), "describe_image")["data"] == caption


@pytest.mark.parametrize("length", [0, -1, 1.5, "50", 10_000])
def test_an_impossible_length_of_a_caption_is_refused(length: object, service: Served) -> None:
    found = service.result(encoded(NOBODY), "describe_image", max_length=length)
    assert found["error_code"] == "invalid_parameters"


def test_a_prompt_is_followed(service: Served) -> None:
    found = service.result(encoded(NOBODY), "describe_image", prompt="here are")
    assert found["data"] == "here are 80 by 100 pixels"


def test_the_decision_is_that_of_the_library(service: Served, index: Path) -> None:
    library: HybridClassifier = classifier(index)
    for colour, seed in (((220, 40, 30), 5), ((160, 60, 170), 6), ((128, 128, 128), 7)):
        photo = encoded(picture(colour, seed=seed))
        expected = json.loads(json.dumps(library.classify(photo).to_dict()))
        found = service.result(photo, "classify_hybrid")["data"]
        for answer in (expected, found):
            del answer["timings"], answer["source"]
        assert found == expected


def test_labels_are_those_of_the_model(service: Served) -> None:
    found = service.result(encoded(Image.new("RGB", (8, 8), (199, 49, 49))), "label_image", top_k=2)
    assert [(item["label"], round(item["score"], 4)) for item in found["data"]] == [
        ("red", round(200 / 300, 4)),
        ("green", round(50 / 300, 4)),
    ]


@pytest.mark.parametrize("operation", ["segment", "segment_panoptic"])
def test_masks_are_read_by_coco(operation: str, service: Served) -> None:
    params = {"points": [[30, 40]]} if operation == "segment" else {}
    found = service.result(encoded(somebody()), operation, **params)
    bright = found["data"][0]
    expected = np.zeros((100, 80), np.uint8)
    expected[20:60, 10:50] = 1
    assert np.array_equal(coco.decode(bright["mask"]), expected)
    assert bright["bbox"] == [10, 20, 50, 60]


def test_a_point_outside_the_photo_is_the_clients_mistake(service: Served) -> None:
    found = service.result(encoded(somebody()), "segment", points=[[500, 500]])
    assert (found["status"], found["error_code"]) == ("skipped", "invalid_parameters")


@pytest.mark.parametrize("params", [{"points": [[1, 1]] * 17}, {"prompts": [{}] * 17}])
def test_a_task_has_so_many_points_and_prompts(params: dict[str, object], service: Served) -> None:
    found = service.result(encoded(somebody()), "segment", **params)
    assert (found["status"], found["error_code"]) == ("skipped", "invalid_parameters")


def test_a_request_has_so_many_masks_of_a_large_photo(service: Served) -> None:
    large = encoded(Image.new("L", (5000, 4000)), "JPEG")
    many = ("segment", {"prompts": [{}] * 16, "multimask": True})
    reply = service.upload(large, many, many)
    assert (reply.status, reply.json["code"]) == (413, "too_many_masks")


def test_crops_are_left_out_of_an_answer_that_would_be_too_large(index: Path) -> None:
    noise = np.random.default_rng(0).integers(140, 256, (300, 300, 3), dtype=np.uint8)
    with serving(classifier(index, max_bytes=400_000)) as service:
        tasks = [("describe_image", {"target": "prominent_person", "prompt": f"{i}"}) for i in range(4)]
        results = service.upload(encoded(Image.fromarray(noise)), *tasks).json["results"].values()
    crops = [result["cropped_image_base64"] for result in results]
    assert crops[0] is not None
    assert crops[-1] is None
    assert {result["status"] for result in results} == {"success"}
    assert [result["error_code"] for result in results] == [
        None if crop else "crop_left_out" for crop in crops
    ]


def test_collections_are_listed_one_by_one(service: Served) -> None:
    listed = service.ask("GET", "/collections/").json
    assert [entry["collection_id"] for entry in listed] == ["7", "8", "9"]
    assert service.ask("GET", "/collections/8").json == listed[1]
    assert listed[1]["derivative_type"] == "prominent_person"
    assert (listed[1]["dimensionality"], listed[1]["name"], listed[1]["usable"]) == (48, "blue", True)
    assert listed[1]["metrics"]["average_precision"] == pytest.approx(1.0)
    reply = service.ask("GET", "/collections/404")
    assert (reply.status, reply.json["code"]) == (404, "unknown_collection")


def test_a_damaged_collection_is_listed_as_unusable(index: Path, tmp_path: Path) -> None:
    (tmp_path / "best_models.json").write_text(json.dumps({"1": "old.pkl", "2": 5}))
    with serving(classifier(index, store=tmp_path)) as service:
        assert [entry["usable"] for entry in service.ask("GET", "/collections/").json] == [False, False]
        found = service.result(encoded(NOBODY), "classify", collection_id=1)
        assert (found["status"], found["error_code"]) == ("error", "unusable")
        assert str(tmp_path) not in json.dumps(found)


def test_an_operation_can_be_left_out_and_given_another_model(index: Path) -> None:
    chosen = {"label_image": None, "describe_image": {"model": {"family": "fake"}, "prompt": "see:"}}
    with serving(classifier(index, operations=chosen, persons=FAKE)) as service:
        assert "label_image" not in service.ask("GET", "/available_operations/").json
        assert service.result(encoded(NOBODY), "label_image")["error_code"] == "unknown_operation"
        assert service.result(encoded(NOBODY), "describe_image")["data"] == "see: 80 by 100 pixels"
