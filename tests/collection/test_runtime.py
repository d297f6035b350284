"""Asking a store: the step `classify` and CollectionClassifier."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lmm_classifier import CollectionClassifier
from lmm_classifier.api.serialize import serialize_sample
from lmm_classifier.collection.artifact import read_model
from lmm_classifier.collection.encoder_binding import encoder_of
from lmm_classifier.collection.estimators import parse_estimator
from lmm_classifier.collection.loaded_classifiers import shelf_of
from lmm_classifier.collection.step import Classify, decide
from lmm_classifier.collection.store import Store
from lmm_classifier.collection.train import TrainOptions
from lmm_classifier.collection.training_set import EmbeddingPart, unit_rows
from lmm_classifier.errors import (
    ClassifierFileError,
    ConfigError,
    EncoderMismatchError,
    ModelError,
    UnknownCollectionError,
)
from lmm_classifier.models import loading
from lmm_classifier.models.detection import Detections
from lmm_classifier.models.loading import load_encoder
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.pipeline import Pipeline
from lmm_classifier.steps.detect import Detect
from lmm_classifier.steps.embed import Embed
from lmm_classifier.steps.focus import Focus
from lmm_classifier.storage.checksummed_json import digest_of
from lmm_classifier.types import Sample
from synthetic import COLOURS, picture
from training_sets import FAKE, FAKE_PART, of_colour, trained, training_set

DESCRIPTOR = ModelSpec("descriptor")
RED, BLUE = picture(COLOURS["red"], seed=1000), picture(COLOURS["blue"], seed=1001)
NOBODY = {"persons": ModelSpec("fake", "person"), "faces": ModelSpec("fake", "face")}


def old(folder: Path, **entries: object) -> CollectionClassifier:
    folder.mkdir(exist_ok=True)
    (folder / "best_models.json").write_text(json.dumps(entries))
    return CollectionClassifier(folder)


class Says:
    """A detector that finds one box, or none, and counts."""

    min_score = 0.5

    def __init__(self, label: str, box: tuple[int, int, int, int] | None) -> None:
        self.label, self.box = label, box
        self.calls = 0

    def detect(self, images: Sequence[Image.Image]) -> list[Detections]:
        self.calls += 1
        boxes = np.asarray([self.box] if self.box else [], np.float32).reshape(-1, 4)
        n = len(boxes)
        return [Detections(boxes, np.ones(n, np.float32), (self.label,) * n) for _ in images]


@pytest.fixture
def detectors():
    with ExitStack() as stack:

        def install(person=None, face=None) -> tuple[Says, Says]:
            made = Says("person", person), Says("face", face)
            for family, detector in zip(("faster-rcnn", "mtcnn"), made, strict=True):
                stack.enter_context(loading.substituted("detector", ModelSpec(family), detector))
            return made

        yield install


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each call of the fake encoder had."""
    encoder, calls = load_encoder(FAKE), []
    real = encoder.encode
    monkeypatch.setattr(
        type(encoder), "encode", lambda self, images: calls.append(len(images)) or real(images)
    )
    return calls


class TestMetadata:
    def test_metadata_is_what_is_stored_or_the_documented_error(self, tmp_path: Path) -> None:
        trained(tmp_path, of_colour("7"))
        classifier = CollectionClassifier(tmp_path)
        metadata = classifier.get_classifier_metadata(7)
        assert metadata["derivative_type"] == "whole_image"
        assert (metadata["embedding_type"], metadata["dimensionality"]) == ("fake", 48)
        with pytest.raises(FileNotFoundError, match="no classifier for collection '8'"):
            classifier.get_classifier_metadata(8)
        with pytest.raises(FileNotFoundError, match="holds no best_models.json"):
            CollectionClassifier(tmp_path / "nowhere").get_classifier_metadata(7)

    @pytest.mark.parametrize(
        "entry",
        [3, None, ["x"], {}, {"model_file": 3}, {"model_file": "x", "derivative_type": "whole_image"}],
    )
    def test_an_entry_of_a_wrong_type_or_without_a_key_is_refused(
        self, tmp_path: Path, entry: object
    ) -> None:
        classifier = old(tmp_path, **{"7": entry})
        with pytest.raises(ValueError, match="collection 7"):
            classifier.get_classifier_metadata(7)

    def test_dimensionality_may_be_left_out_of_an_old_entry(self, tmp_path: Path) -> None:
        entry = {"model_file": "a.pkl", "derivative_type": "prominent_face", "embedding_type": "dino_v2"}
        assert old(tmp_path, **{"7": entry}).get_classifier_metadata("7") == entry

    def test_an_old_string_means_clip_vectors_of_the_whole_image(self, tmp_path: Path) -> None:
        classifier = old(tmp_path, **{"7": "collection_7_classifier_2025-01-01_000000.pkl"})
        assert classifier.get_classifier_metadata(7) == {
            "model_file": "collection_7_classifier_2025-01-01_000000.pkl",
            "derivative_type": "whole_image",
            "embedding_type": "clip",
            "dimensionality": 512,
        }
        with pytest.raises(ClassifierFileError, match="a pickle.*collections convert"):
            classifier.classify(RED, [7])

    def test_figures_are_averaged_by_embedding_type(self, tmp_path: Path) -> None:
        results = trained(tmp_path, of_colour("1"), of_colour("2", "blue"), training_set("3"))
        means = CollectionClassifier(tmp_path).by_embedding_type()
        assert {name: row["collections"] for name, row in means.items()} == {"fake": 2, "made_up": 1}
        figures = [r.best.metrics.accuracy for r in results[:2] if r.best.metrics]
        assert means["fake"]["accuracy"] == np.mean(figures)


class TestEncoders:
    def test_an_encoder_is_found_by_the_services_name_of_it_or_by_its_own(self) -> None:
        for name, family in [("clip", "clip"), ("dino_v2", "dinov2"), ("dino_v3", "dinov3"),
                             ("dino_v3_patch", "dinov3-patch"), ("siglip", "siglip")]:  # fmt: skip
            assert encoder_of(EmbeddingPart(name, 8), {}, "cpu") == ModelSpec(family, device="cpu")
        assert encoder_of(EmbeddingPart("clip", 8), {"clip": DESCRIPTOR}, "cpu") == DESCRIPTOR
        bound = EmbeddingPart("clip", 8, "f", "clip", "mine", "v1", "float32")
        assert encoder_of(bound, {}, "auto") == ModelSpec("clip", "mine", "v1", dtype="float32")
        with pytest.raises(ConfigError, match="nothing says which encoder makes 'auraface'"):
            encoder_of(EmbeddingPart("auraface", 512), {}, "auto")

    def test_a_concatenated_embedding_is_made_of_all_its_encoders(self, tmp_path: Path) -> None:
        pictures = [picture(COLOURS[sorted(COLOURS)[i % 3]], seed=i) for i in range(60)]
        parts = [FAKE_PART, EmbeddingPart("shape", load_encoder(DESCRIPTOR).contract.dim)]
        vectors = [unit_rows(load_encoder(spec).encode(pictures), "x") for spec in (FAKE, DESCRIPTOR)]
        made = replace(
            training_set("8", 60),
            parts=tuple(parts),
            vectors=np.hstack(vectors),
            labels=np.arange(60) % 3 == 2,
        )
        [result] = trained(tmp_path, made)
        assert result.best.embedding_type == "fake+shape"
        classifier = CollectionClassifier(tmp_path, encoders={"shape": DESCRIPTOR})
        assert [classifier.classify(image)[0].is_in_collection for image in (RED, BLUE)] == [True, False]
        with pytest.raises(ConfigError, match="which encoder makes 'shape'"):
            CollectionClassifier(tmp_path).classify(RED, [8])

    def test_a_classifier_of_an_unknown_region_is_refused(self, tmp_path: Path) -> None:
        trained(tmp_path, of_colour("7"))
        entry = Store(tmp_path).metadata(7)
        body = {**{k: v for k, v in entry.items() if k != "digest"}, "derivative_type": "left_ear"}
        classifier = old(tmp_path, **{"7": {**body, "digest": digest_of(body)}})
        [answer] = classifier.classify(RED)
        assert (answer.status, answer.code) == ("error", "bad_classifier_file")
        assert "derivative_type" in str(answer.reason)

    def test_a_classifier_given_another_encoders_vectors_refuses(self, tmp_path: Path) -> None:
        trained(tmp_path, of_colour("7"))
        with pytest.raises(EncoderMismatchError, match="48 dimensions, those of encoder descriptor"):
            CollectionClassifier(tmp_path, encoders={"fake": DESCRIPTOR}).classify(RED, [7])
        [answer] = CollectionClassifier(tmp_path, encoders={"fake": DESCRIPTOR}).classify(RED)
        assert (answer.status, answer.code, answer.probability) == ("error", "encoder_mismatch", None)

    def test_vectors_that_others_made_are_refused_where_they_are_decided(self, tmp_path: Path) -> None:
        trained(tmp_path, of_colour("7"))
        [stack] = shelf_of(tmp_path).classifiers(None, (), "auto").stacks
        [sample] = Embed(DESCRIPTOR).run([Sample.from_image("x", RED)])
        with pytest.raises(
            EncoderMismatchError, match="collection 7 is bound to the encoder with fingerprint"
        ):
            decide(stack, [sample])

    def test_vectors_of_the_same_length_by_another_encoder_are_refused(self, tmp_path: Path) -> None:
        made = of_colour("7")
        trained(tmp_path, replace(made, parts=(replace(FAKE_PART, fingerprint="0123456789abcdef"),)))
        with pytest.raises(
            EncoderMismatchError, match="trained on vectors of the encoder with fingerprint 0123"
        ):
            CollectionClassifier(tmp_path).classify(RED, ["7"])

    def test_vectors_of_an_unknown_encoder_are_bound_by_name_and_length(self, tmp_path: Path) -> None:
        made = replace(of_colour("7"), parts=(EmbeddingPart("clip", 48),))
        trained(tmp_path, made)
        classifier = CollectionClassifier(tmp_path, encoders={"clip": FAKE})
        assert [classifier.classify(image)[0].is_in_collection for image in (RED, BLUE)] == [True, False]

    def test_a_model_that_cannot_be_opened_leaves_the_other_collections_alone(self, tmp_path: Path) -> None:
        made = replace(of_colour("8"), parts=(EmbeddingPart("mine", 48),))
        trained(tmp_path, of_colour("7"), made)
        classifier = CollectionClassifier(tmp_path, encoders={"mine": ModelSpec("onnx", "/nowhere.onnx")})
        good, bad = classifier.classify(RED)
        assert (good.status, good.is_in_collection) == ("success", True)
        assert (bad.status, bad.code) == ("error", "model_unavailable")
        with pytest.raises(ModelError):
            classifier.classify(RED, [8])


class TestRegions:
    def test_without_a_person_the_whole_image_is_taken_and_the_answer_says_so(
        self, tmp_path: Path, detectors
    ) -> None:
        trained(tmp_path, of_colour("7", region="prominent_person"), of_colour("8"))
        detectors(person=None)
        person, whole = CollectionClassifier(tmp_path).classify(RED)
        assert (person.fallback, person.box) == ("no person was found", (0, 0, 24, 24))
        assert (whole.fallback, whole.region) == (None, "whole_image")
        assert person.probability == whole.probability
        assert person.is_in_collection

    def test_without_a_face_a_collection_is_skipped_and_named(self, tmp_path: Path, detectors) -> None:
        trained(tmp_path, of_colour("7", region="prominent_face"), of_colour("8"))
        _, faces = detectors(person=(2, 2, 22, 22), face=None)
        face, whole = CollectionClassifier(tmp_path).classify(RED)
        assert (face.status, face.code, face.is_in_collection) == ("skipped", "no_face", None)
        assert face.reason == "no face was found, and collection 7 (red) is about prominent_face"
        assert whole.is_in_collection
        detectors(person=None)
        assert CollectionClassifier(tmp_path).classify(RED)[0].code == "no_person"
        assert faces.calls == 1

    def test_the_region_of_the_metadata_is_what_is_encoded(self, tmp_path: Path, detectors) -> None:
        """A blue photo with a red person: of the colour of the person, not of the photo."""
        trained(tmp_path, of_colour("7", region="prominent_person"), of_colour("8"))
        image = BLUE.resize((80, 80))
        image.paste(RED, (10, 30))
        detectors(person=(10, 30, 34, 54))
        person, whole = CollectionClassifier(tmp_path).classify(image)
        assert (person.is_in_collection, whole.is_in_collection) == (True, False)
        assert person.box == (10, 30, 34, 54)
        assert whole.box == (0, 0, 80, 80)

    def test_a_contradicting_request_is_an_error(self, tmp_path: Path, detectors) -> None:
        trained(tmp_path, of_colour("7"))
        with pytest.raises(ConfigError, match="about whole_image, not about target prominent_face"):
            CollectionClassifier(tmp_path, target="prominent_face").classify(RED)
        assert CollectionClassifier(tmp_path, target="whole_image").classify(RED)[0].is_in_collection
        detectors()
        focus = (Detect(ModelSpec("faster-rcnn")), Focus("person", on_missing="fallback"))
        with pytest.raises(ConfigError, match="about whole_image, but `focus` has chosen a person"):
            list(Pipeline((*focus, Classify(store=tmp_path))).run([Sample.from_image("x", RED)]))

    def test_a_region_that_focus_has_found_is_not_looked_for_again(
        self, tmp_path: Path, detectors, encoded
    ) -> None:
        trained(tmp_path, of_colour("7", region="prominent_person"))
        persons, _ = detectors(person=(2, 2, 22, 22))
        encoded.clear()
        line = (Detect(ModelSpec("faster-rcnn")), Focus("person"), Embed(FAKE), Classify(store=tmp_path))
        [sample] = Pipeline(line).run([Sample.from_image("x", RED)])
        assert (persons.calls, encoded) == (1, [1])
        assert sample.memberships is not None
        assert sample.memberships[0].box == (2, 2, 22, 22)

    def test_each_region_is_found_once_and_encoded_once_per_encoder(
        self, tmp_path: Path, detectors, encoded
    ) -> None:
        regions = ("whole_image", "prominent_person", "prominent_face")
        sets = [of_colour(f"{i}", ("red", "blue")[i % 2], regions[i % 3]) for i in range(12)]
        trained(tmp_path, *sets)
        persons, faces = detectors(person=(2, 2, 22, 22), face=(1, 1, 12, 12))
        encoded.clear()
        answers = CollectionClassifier(tmp_path).classify(RED)
        assert [a.collection for a in answers] == [str(i) for i in range(12)]
        assert [a.is_in_collection for a in answers] == [i % 2 == 0 for i in range(12)]
        assert (persons.calls, faces.calls) == (1, 1)
        assert encoded == [1, 1, 1]

    def test_a_vector_of_an_earlier_step_is_used(self, tmp_path: Path, encoded) -> None:
        trained(tmp_path, of_colour("7"))
        encoded.clear()
        [sample] = Pipeline((Embed(FAKE), Classify(store=tmp_path))).run([Sample.from_image("x", RED)])
        assert encoded == [1]
        assert serialize_sample(sample)["memberships"][0]["is_in_collection"] is True


class TestDecisions:
    def test_the_stacked_answer_is_that_of_each_classifier_alone(self, tmp_path: Path) -> None:
        names = ("logistic-regression", "linear-svc", "lda")
        for i, name in enumerate(names):
            data = replace(of_colour(str(i)), vectors=of_colour("0", n=90).vectors)
            trained(tmp_path, data, options=TrainOptions((parse_estimator(name),)))
        [vector] = load_encoder(FAKE).encode([RED])
        answers = CollectionClassifier(tmp_path).classify(RED)
        for answer in answers:
            version = Store(tmp_path).snapshot().version(answer.collection)
            [score] = read_model(tmp_path, version).scores(vector[None])
            alone = 1 / (1 + np.exp(-(version.slope * score + version.offset)))
            assert answer.probability == pytest.approx(alone, abs=1e-9)
            assert answer.is_in_collection == (alone >= version.threshold)

    def test_between_yes_and_no_it_may_abstain(self, tmp_path: Path) -> None:
        trained(tmp_path, of_colour("7"), options=TrainOptions(threshold=0.5, abstain=0.5))
        [answer] = CollectionClassifier(tmp_path).classify(RED)
        assert (answer.status, answer.is_in_collection) == ("success", None)
        assert answer.probability is not None

    def test_the_probability_decides_at_the_stored_threshold(self, tmp_path: Path) -> None:
        trained(tmp_path, of_colour("7"), options=TrainOptions(threshold=1.0))
        [answer] = CollectionClassifier(tmp_path).classify(RED)
        assert (answer.threshold, answer.is_in_collection) == (1.0, False)

    def test_a_collection_that_nobody_trained_is_an_error_that_names_the_nearest(
        self, tmp_path: Path
    ) -> None:
        trained(tmp_path, of_colour("7"))
        with pytest.raises(UnknownCollectionError, match="'71'; did you mean '7'"):
            CollectionClassifier(tmp_path).classify(RED, [71])

    def test_files_are_answered_in_order(self, tmp_path: Path) -> None:
        trained(tmp_path / "store", of_colour("7"))
        RED.save(tmp_path / "red.png")
        BLUE.save(tmp_path / "blue.png")
        (tmp_path / "bad.png").write_bytes(b"x")
        paths = [tmp_path / name for name in ("red.png", "bad.png", "blue.png")]
        first, bad, last = CollectionClassifier(tmp_path / "store").classify_files(paths)
        assert [first[1][0].is_in_collection, last[1][0].is_in_collection] == [True, False]
        assert bad.code == "unsupported_format"

    @pytest.fixture
    def thousand(self, tmp_path: Path) -> Classify:
        """Of a store of a thousand collections."""
        [result] = trained(tmp_path, of_colour("0"))
        entries = {str(i): replace(result.best, collection=str(i)).sealed() for i in range(1000)}
        (tmp_path / "best_models.json").write_text(json.dumps(entries))
        step = Classify(store=tmp_path)
        step.load()
        return step

    def test_a_thousand_collections_take_one_embedding(self, thousand: Classify, encoded) -> None:
        encoded.clear()
        [sample] = thousand.run([Sample.from_image("photo", RED)])
        assert encoded == [1]
        assert len(sample.memberships) == 1000

    @pytest.mark.timing
    def test_a_thousand_collections_are_decided_in_30_ms_after_the_embedding(
        self, thousand: Classify
    ) -> None:
        [embedded] = Embed(FAKE).run([Sample.from_image("photo", RED)])
        seconds = []
        for _ in range(10):
            started = time.perf_counter()
            thousand.run([embedded])
            seconds.append(time.perf_counter() - started)
        assert min(seconds) < 0.030  # the least disturbed of ten; measured .006
