"""Training data from a collections service."""

from __future__ import annotations

import html
import re
import time

import numpy as np
import pytest

from collections_service import Handler, blobs, body, collection, data_path, records, serving
from lmm_classifier.collection.sources.http import TOKEN, Service
from lmm_classifier.collection.training_set import SkippedCollection, TrainingSet
from lmm_classifier.errors import CollectionError, ConfigError, FetchError
from lmm_classifier.fetch import FetchLimits
from lmm_classifier.models.spec import ModelSpec

pytestmark = pytest.mark.usefixtures("loopback")
VECTORS, LABELS = blobs()
GOOD = body(records(VECTORS, LABELS))
QUICK = FetchLimits(silence_s=0.3, total_s=0.6, max_bytes=100_000, wait_s=0.02)
LIST = "/collections.json"


def only(answers, **options) -> TrainingSet | SkippedCollection:
    with serving(answers) as server:
        [found] = Service(server.url, limits=QUICK, **options).collections()
    return found


def test_the_documented_paths_are_asked_with_the_token_and_their_records_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(TOKEN, "secret")
    with serving({LIST: body([collection(7, "cats")]), data_path(7): GOOD}) as server:
        [found] = Service(server.url + "/").collections()
        assert server.paths == [LIST, data_path(7)]
        assert {headers["Authorization"] for _, headers in server.asked} == {"Bearer secret"}
    assert isinstance(found, TrainingSet)
    assert (found.collection, found.name, found.derivative_type) == ("7", "cats", "whole_image")
    assert found.items[:2] == ("1", "2")
    np.testing.assert_array_equal(found.labels, LABELS)
    np.testing.assert_allclose(found.vectors, VECTORS / 2, atol=1e-6)  # stored raw, length 2: trained unit


def test_without_a_token_none_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN, raising=False)
    with serving({LIST: body([])}) as server:
        assert list(Service(server.url).collections()) == []
        assert "Authorization" not in server.asked[0][1]


def test_a_token_that_no_header_can_hold_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN, "a\nb")
    with pytest.raises(ConfigError, match="cannot carry") as caught:
        list(Service("http://127.0.0.1:1").collections())
    assert "a\nb" not in str(caught.value)


def test_labels_may_be_true_and_false() -> None:
    told = [{**r, "label": bool(r["label"])} for r in records(VECTORS, LABELS)]
    found = only({LIST: body([collection(7)]), data_path(7): body(told)})
    assert isinstance(found, TrainingSet)
    np.testing.assert_array_equal(found.labels, LABELS)


@pytest.mark.parametrize(
    "focus",
    [
        {"derivative_type": {"name": "prominent_face"}, "embedding_type": {"name": "dino_v2"}},
        {"derivative_type_name": "prominent_face", "embedding_type_name": "dino_v2"},
        {"derivative_type": {"id": 3, "name": "prominent_face"}, "embedding_type_name": "dino_v2"},
    ],
    ids=["nested", "flat", "mixed"],
)
def test_both_spellings_of_a_focus_are_read(focus: dict[str, object]) -> None:
    entry = {"id": 7, "name": "a", "collection_focus": focus}
    found = only({LIST: body([entry]), data_path(7, "dino_v2"): GOOD})
    assert isinstance(found, TrainingSet)
    assert (found.derivative_type, found.embedding_type) == ("prominent_face", "dino_v2")


PAGE = "<style>p {{color: red}} a[b] {{x: y}}</style><script>var a = [];</script><pre>{}</pre> [end]</html>"


@pytest.mark.parametrize("escape", [False, True])
def test_json_inside_a_page_is_read(escape: bool) -> None:
    def page(content: bytes) -> bytes:
        text = content.decode()
        return PAGE.format(html.escape(text) if escape else text).encode()

    entry = collection(7, 'the "best" <cats> [1]')
    found = only({LIST: page(body([entry])), data_path(7): page(GOOD)})
    assert isinstance(found, TrainingSet)
    assert found.name == entry["name"]
    assert len(found.items) == len(LABELS)


def test_a_byte_order_mark_and_a_wrapping_object() -> None:
    found = only(
        {
            LIST: b"\xef\xbb\xbf" + body({"collections": [collection(7)]}),
            data_path(7): body({"data": records(VECTORS, LABELS)}),
        }
    )
    assert isinstance(found, TrainingSet)


NO_KEY = [{"embedding": [1, 2], "label": 1}]
UNEVEN = [*records(VECTORS, LABELS), {"embedding": [1.0], "label": 1, "photo_id": 99}]
TWICE = [*records(VECTORS, LABELS), {**records(VECTORS, LABELS)[0], "label": 0}]


@pytest.mark.parametrize(
    ("entry", "data", "says"),
    [
        ({"id": 7, "name": "a"}, GOOD, "no focus"),
        ({"id": 7, "name": "a", "collection_focus": None}, GOOD, "no focus"),
        ({"id": 7, "name": "a", "focus": {"embedding_type_name": "clip"}}, GOOD, "names no derivative"),
        (collection("7"), GOOD, "whole number"),
        (collection(True), GOOD, "whole number"),
        (collection(7, name=3), GOOD, "name a text"),
        (collection(7, region="left_ear"), GOOD, "'left_ear' is none of whole_image"),
        ("nonsense", GOOD, "whole number"),
        (collection(7), body(NO_KEY), "record 0 lacks"),
        (collection(7), body(UNEVEN), "different dimensions"),
        (collection(7), body(TWICE), "photo 1 comes twice"),
        (collection(7), body([]), "no photo"),
        (collection(7), body({"error": "gone"}), "no list of records"),
        (collection(7), body([{"embedding": ["x"], "label": 1, "photo_id": 1}]), "no numbers"),
        (collection(7), b'[{"embedding": [1' + b"0" * 400 + b'], "label": 1, "photo_id": 1}]', "no numbers"),
        (collection(7), b'[{"embedding": [NaN], "label": 1, "photo_id": 1}]', "no finite numbers"),
        (collection(7), body([{"embedding": [0.0], "label": 1, "photo_id": 1}]), "nothing but zeros"),
        (collection(7), body([{"embedding": [1.0], "label": 2, "photo_id": 1}]), "label 0 or 1"),
        (collection(7), GOOD[:-50], "no whole JSON|lacks"),
        (collection(7), b"<html>down for maintenance</html>", "no whole JSON"),
        (collection(7), b"[" * 100_000, "nested too deeply|no whole JSON"),
        (collection(7), b"\xff\xfe", "not UTF-8"),
        (collection(7), b" " * 200_000, "more than 100000 bytes"),
        (collection(7), None, "answers 404"),
        (collection(7), lambda handler: handler.say(500, b"Traceback"), "answers 500"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_skipped_with_a_reason(entry, data, says: str) -> None:
    answers = {LIST: body([entry])} | ({data_path(7): data} if data is not None else {})
    found = only(answers)
    assert isinstance(found, SkippedCollection)
    assert re.search(says, found.reason), found.reason
    assert "\n" not in found.reason


def test_one_bad_collection_does_not_stop_the_others() -> None:
    def slow(handler: Handler) -> None:
        time.sleep(1)

    entries = [collection(1), collection(2), {"id": 3, "name": "x"}, collection(4)]
    with serving({LIST: body(entries), data_path(1): slow, data_path(2): GOOD, data_path(4): GOOD}) as server:
        found = list(Service(server.url, limits=QUICK).collections())
    assert [type(f).__name__ for f in found] == [
        "SkippedCollection",
        "TrainingSet",
        "SkippedCollection",
        "TrainingSet",
    ]
    assert [f.collection for f in found] == ["1", "2", "3", "4"]


def test_without_a_list_there_is_nothing_to_do() -> None:
    with (
        serving({LIST: body({"error": "no"})}) as server,
        pytest.raises(CollectionError, match="is not a list of collections"),
    ):
        list(Service(server.url).collections())
    with serving({}) as server, pytest.raises(FetchError, match="404"):
        list(Service(server.url).collections())


def test_only_what_is_asked_for_is_fetched() -> None:
    with serving({LIST: body([collection(1), collection(2)]), data_path(2): GOOD}) as server:
        [found] = Service(server.url, only=("2",)).collections()
        assert found.collection == "2"
        assert data_path(1) not in server.paths
        with pytest.raises(CollectionError, match="no collection '9'"):
            list(Service(server.url, only=("9",)).collections())


def test_parts_of_a_concatenated_embedding_are_joined_on_the_photo() -> None:
    a, labels = blobs(30, d=4, seed=1)
    b, _ = blobs(30, d=6, seed=2)
    answers = {
        LIST: body([collection(8)]),
        data_path(8, "clip"): body(records(a, labels)),
        data_path(8, "dino_v3_patch"): body(list(reversed(records(b, labels)))[:25]),  # 6..30, other order
    }
    found = only(answers, embedding_types={"8": "clip+dino_v3_patch"})
    assert isinstance(found, TrainingSet)
    assert found.embedding_type == "clip+dino_v3_patch"
    assert [(p.embedding_type, p.dimensionality) for p in found.parts] == [("clip", 4), ("dino_v3_patch", 6)]
    assert found.items == tuple(str(i) for i in range(6, 31))
    np.testing.assert_allclose(found.vectors, np.hstack([a[5:] / 2, b[5:] / 2]), atol=1e-6)
    np.testing.assert_array_equal(found.labels, labels[5:])
    assert found.warnings == ("5 photos lack a part of clip+dino_v3_patch and are left out",)


def test_parts_that_disagree_about_a_label_are_refused() -> None:
    a, labels = blobs(30)
    answers = {
        LIST: body([collection(8, kind="clip+dino_v2")]),
        data_path(8, "clip"): body(records(a, labels)),
        data_path(8, "dino_v2"): body(records(a, ~labels)),
    }
    found = only(answers)
    assert isinstance(found, SkippedCollection)
    assert "label a photo differently" in found.reason


def test_vectors_are_bound_to_an_encoder_that_can_have_made_them() -> None:
    vectors, labels = blobs(30, d=48)
    answers = {LIST: body([collection(7)]), data_path(7): body(records(vectors, labels))}
    found = only(answers, encoders={"clip": ModelSpec("fake")})
    assert isinstance(found, TrainingSet)
    assert found.parts[0].family == "fake"
    assert len(found.parts[0].fingerprint) == 16
    answers[data_path(7)] = GOOD
    refused = only(answers, encoders={"clip": ModelSpec("fake")})
    assert isinstance(refused, SkippedCollection)
    assert "8 dimensions, those of encoder fake  have 48" in refused.reason
