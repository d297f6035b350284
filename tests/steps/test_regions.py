"""Where in a photo a task looks: detection, the choice of one region, lines that share their beginning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageDraw, ImageOps
from pydantic import TypeAdapter, ValidationError

from lmm_classifier.api.serialize import serialize_sample
from lmm_classifier.errors import ConfigError, ModelError
from lmm_classifier.models import loading
from lmm_classifier.models.detection import Detections, load_detector
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.pipeline import Pipeline, Step, run_shared
from lmm_classifier.regions import RegionSelector, make_region_selector
from lmm_classifier.steps.detect import Detect
from lmm_classifier.steps.embed import Embed
from lmm_classifier.steps.focus import Focus
from lmm_classifier.types import Region, Sample

FAKE, FACES = ModelSpec("fake"), ModelSpec("mtcnn")
EMBED = Embed(FAKE)


def photo(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (200, 100)) -> Sample:
    image = Image.new("RGB", size, (40, 40, 40))
    for box in boxes:
        ImageDraw.Draw(image).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=(250, 250, 250))
    return Sample.from_image("photo", image)


def with_regions(*regions: Region) -> Sample:
    sample = photo()
    return replace(sample, regions=(*sample.regions, *regions))


class Says:
    """A detector that finds what it is told, whatever it is shown."""

    min_score = 0.5

    def __init__(self, *found: tuple[tuple[float, ...], float, str]) -> None:
        self.found = found
        self.shown: list[tuple[int, int]] = []

    def detect(self, images: Sequence[Image.Image]) -> list[Detections]:
        self.shown += [image.size for image in images]
        boxes = np.asarray([box for box, _, _ in self.found], np.float32).reshape(-1, 4)
        scores = np.asarray([score for _, score, _ in self.found], np.float32)
        return [Detections(boxes, scores, tuple(label for _, _, label in self.found)) for _ in images]


@pytest.fixture
def says():
    with ExitStack() as stack:

        def install(*found: tuple[tuple[float, ...], float, str], family: str = "fake") -> Says:
            detector = Says(*found)
            stack.enter_context(loading.substituted("detector", ModelSpec(family), detector))
            return detector

        yield install


def lines_of(tasks: Sequence[tuple[RegionSelector, Sequence[Step]]]) -> list[tuple[Step, ...]]:
    """The whole line of steps of each task."""
    return [(*selector.steps(), *steps) for selector, steps in tasks]


class TestDetect:
    def test_boxes_become_whole_pixels_inside_the_photo_best_first(self, says) -> None:
        says(
            ((10.9, 20.2, 50.9, 60.7), 0.7, "person"),  # truncated, not rounded
            ((-30, -5, 40, 300), 0.9, "person"),  # clamped on all sides
            ((60, 10, 60.9, 90), 0.99, "person"),  # no whole pixel wide
            ((300, 10, 400, 90), 0.99, "person"),  # outside
            ((0, 0, 10, 10), 0.49, "person"),  # below the detector's own floor
            ((0, 0, 10, 10), 0.95, "dog"),
        )
        [found] = Detect(FAKE, labels=("person",)).run([photo()])
        assert found.regions[0].kind == "image"
        assert [(r.box, r.kind, r.source) for r in found.regions[1:]] == [
            ((0, 0, 40, 100), "person", "detect"),
            ((10, 20, 50, 60), "person", "detect"),
        ]
        assert found.regions[1].score == pytest.approx(0.9)
        [everything] = Detect(FAKE, min_score=0.0).run([photo()])
        assert sorted(Counter(r.kind for r in everything.regions[1:]).items()) == [("dog", 1), ("person", 3)]

    def test_inside_a_region_boxes_are_those_of_the_photo(self, says) -> None:
        detector = says(((5, 6, 500, 20), 0.8, "face"))
        line = (Focus("person"), Detect(FAKE, labels=("face",)))
        [found] = Pipeline(line).run([with_regions(Region((100, 30, 160, 90), "person"))])
        assert detector.shown == [(60, 60)]
        assert found.regions[-1].box == (105, 36, 160, 50)  # the crop's origin added, cut at its end

    def test_a_detector_that_fails_is_not_nobody_found(self) -> None:
        with pytest.raises(ModelError, match="told to fail"):
            Detect(ModelSpec("fake", "fails")).run([photo()])

    @pytest.mark.parametrize(
        "wrong",
        [
            lambda images: [],
            lambda images: [Detections(np.zeros((2, 4), np.float32), np.zeros(1, np.float32), ("a",))],
            lambda images: [Detections(np.full((1, 4), np.nan, np.float32), np.ones(1, np.float32), ("a",))],
            lambda images: 1 / 0,
        ],
    )
    def test_a_detector_that_breaks_its_promise_is_named(self, says, wrong) -> None:
        says().detect = wrong
        with pytest.raises(ModelError, match="detector 'fake'"):
            Detect(FAKE).run([photo()])

    def test_an_unknown_detector_is_refused_with_the_nearest_name(self) -> None:
        with pytest.raises(ValidationError, match="did you mean 'mtcnn'"):
            TypeAdapter(Detect).validate_python({"model": {"family": "mtcn"}})


class TestFocus:
    SMALL_SURE = Region((10, 10, 30, 30), "person", "detect", 0.9)
    LARGE_UNSURE = Region((50, 0, 150, 100), "person", "detect", 0.3)
    LARGE_SURE = Region((60, 0, 160, 100), "person", "detect", 0.9)

    @pytest.mark.parametrize(
        ("prominence", "regions", "chosen"),
        [
            ("score", (LARGE_UNSURE, SMALL_SURE), 1),
            ("score", (SMALL_SURE, LARGE_SURE), 1),  # a tie: the larger
            ("largest", (SMALL_SURE, LARGE_UNSURE), 1),
            ("largest", (LARGE_SURE, LARGE_UNSURE), 1),  # a tie: the left-most
            ("score_area", (SMALL_SURE, LARGE_UNSURE), 1),  # .9 x 400 against .3 x 10,000
            ("score_area", (LARGE_UNSURE, LARGE_SURE), 1),
        ],
    )
    def test_the_most_prominent(self, prominence: str, regions: tuple[Region, ...], chosen: int) -> None:
        [found] = Focus("person", prominence).run([with_regions(*regions)])
        assert found.target is not None
        assert found.target.row == 1 + chosen
        assert found.target.box == regions[chosen].box
        assert found.target.fallback is None

    def test_padding_stays_in_the_photo(self) -> None:
        [found] = Focus("person", padding=0.5).run([with_regions(Region((10, 10, 50, 90), "person"))])
        assert found.target is not None
        assert found.target.box == (0, 0, 70, 100)

    def test_a_tall_cut_is_shown_whole_in_a_square(self) -> None:
        sample = photo((100, 0, 120, 100))
        sample = replace(sample, regions=(*sample.regions, Region((100, 0, 120, 100), "person")))
        [padded], [plain] = (
            Focus("person", crop_policy=policy).run([sample]) for policy in ("pad", "centre")
        )
        [square], [crop] = padded.crops(), plain.crops()
        assert (square.size, crop.size) == ((100, 100), (20, 100))
        pixels = np.asarray(square)
        assert (pixels[:, 40:60] == 250).all()
        assert (pixels[:, :40] == (124, 116, 104)).all()
        assert (pixels[:, 60:] == (124, 116, 104)).all()

    def test_nobody_is_said_skipped_or_raised(self) -> None:
        [fallback] = Focus("person", on_missing="fallback").run([photo()])
        assert fallback.target is not None
        assert fallback.target.fallback == "no person was found"
        assert fallback.target.box == (0, 0, 200, 100)
        assert fallback.crops()[0].size == (200, 100)
        [skip] = Focus("face").run([photo()])
        assert skip.target is None
        assert skip.skipped is not None
        assert (skip.skipped.code, skip.skipped.reason) == ("no_face", "no face was found")
        with pytest.raises(ConfigError, match="photo: no face was found"):
            Focus("face", on_missing="error").run([photo()])

    def test_a_skipped_photo_goes_no_further_and_the_others_do(self) -> None:
        line = (Detect(FAKE), Focus("person"), EMBED)
        dark, bright = photo(), photo((20, 20, 60, 60))
        first, second, third = Pipeline(line).run([dark, bright, dark])
        assert (first.embeddings, third.embeddings) == ({}, {})
        assert len(second.embeddings) == 1
        assert first.skipped is not None
        assert "embed" not in first.timings
        assert "embed" in second.timings


class TestWhere:
    def test_there_are_three_targets_and_another_is_refused(self) -> None:
        assert RegionSelector().steps() == ()
        assert [step.name for step in RegionSelector("prominent_person").steps()] == ["detect", "focus"]
        assert [step.name for step in RegionSelector("prominent_face").steps()] == ["detect", "focus"] * 2
        known = "target: Input should be 'whole_image', 'prominent_person' or 'prominent_face'"
        with pytest.raises(ConfigError, match=f"^{known}$"):
            make_region_selector({"target": "nobody"})

    def test_the_context_of_a_face_is_one_of_two(self) -> None:
        assert [s.name for s in RegionSelector("prominent_face", "whole_image").steps()] == [
            "detect",
            "focus",
        ]
        with pytest.raises(ValidationError, match="face_context"):
            TypeAdapter(RegionSelector).validate_python({"face_context": "the_moon"})

    def test_without_a_person_the_whole_image_is_taken_and_the_result_says_so(self, says) -> None:
        says(family="faster-rcnn")
        [found] = Pipeline((*RegionSelector("prominent_person").steps(), EMBED)).run([photo()])
        assert found.target is not None
        assert found.target.fallback == "no person was found"
        [whole] = Pipeline((EMBED,)).run([photo()])
        for key, rows in whole.embeddings.items():
            np.testing.assert_array_equal(found.embeddings[key], rows)

    def test_without_a_person_no_face_is_looked_for(self, says) -> None:
        says(family="faster-rcnn")
        faces = says(((5, 5, 40, 40), 0.9, "face"), family="mtcnn")
        [found] = Pipeline(RegionSelector("prominent_face").steps()).run([photo()])
        assert found.skipped is not None
        assert found.skipped.code == "no_person"
        assert faces.shown == []
        [anywhere] = Pipeline(RegionSelector("prominent_face", "whole_image").steps()).run([photo()])
        assert anywhere.target is not None
        assert anywhere.target.box == (5, 5, 40, 40)

    def test_the_box_of_the_most_prominent_person_is_whole_pixels_with_a_score(self, says) -> None:
        """Detection alone is a place without a step after it."""
        says(((10.6, 20.4, 60.7, 500), 0.7, "person"), ((0, 0, 9, 9), 0.4, "person"), family="faster-rcnn")
        [[found]] = run_shared(
            [photo()], lines_of([(make_region_selector({"target": "prominent_person"}), ())])
        )
        target = serialize_sample(found)["target"]
        assert (target["box"], target["wanted"], target["fallback"]) == ([10, 20, 60, 100], "person", None)
        assert target["score"] == pytest.approx(0.7)
        assert all(type(side) is int for side in target["box"])

    def test_a_person_without_a_face_is_skipped_with_a_reason(self, says) -> None:
        says(((10, 10, 90, 90), 0.9, "person"), family="faster-rcnn")
        faces = says(family="mtcnn")
        [found] = Pipeline((*RegionSelector("prominent_face").steps(), EMBED)).run([photo()])
        assert faces.shown == [(80, 80)]
        assert found.skipped is not None
        assert (found.skipped.code, found.skipped.reason) == ("no_face", "no face was found")
        assert found.embeddings == {}

    def test_nobody_found_is_no_error_and_a_broken_detector_is(self, says) -> None:
        detector = says(family="faster-rcnn")
        assert next(Pipeline(RegionSelector("prominent_person").steps()).run([photo()])).target is not None
        detector.detect = lambda images: 1 / 0
        with pytest.raises(ModelError, match="faster-rcnn"):
            list(Pipeline(RegionSelector("prominent_person").steps()).run([photo()]))


class TestShared:
    def test_eight_tasks_detect_once_and_embed_each_view_once(self, says) -> None:
        persons = says(((10, 10, 90, 90), 0.9, "person"), family="faster-rcnn")
        faces = says(((5, 5, 40, 40), 0.9, "face"), family="mtcnn")
        calls: list[int] = []

        class Counting(Embed):
            def run(self, batch: Sequence[Sample]) -> list[Sample]:
                calls.append(len(batch))
                return super().run(batch)

        embed = Counting(FAKE)
        person, face = RegionSelector("prominent_person"), RegionSelector("prominent_face")
        anywhere = RegionSelector("prominent_face", "whole_image")
        tasks = [(person, ()), (person, (embed,)), (person, (Counting(FAKE),)), (face, (embed,))]
        tasks += [
            (face, ()),
            (anywhere, (embed,)),
            (RegionSelector(), (embed,)),
            (RegionSelector(), (embed,)),
        ]
        shown = photo((12, 12, 30, 30))
        results = run_shared([shown], lines_of(tasks))
        assert len(results) == 8
        assert persons.shown == [(200, 100)]
        assert faces.shown == [(80, 80), (200, 100)]  # one slot per context
        assert calls == [1, 1, 1, 1]  # person, face of the person, face anywhere, whole image
        vectors = [next(iter(r[0].embeddings.values())) for r in results if r[0].embeddings]
        np.testing.assert_array_equal(vectors[0], vectors[1])
        assert not np.array_equal(vectors[2], vectors[3])
        alone = [next(Pipeline(line).run([shown])) for line in lines_of(tasks)]
        assert [r[0].target for r in results] == [a.target for a in alone]

    def test_lines_are_checked_before_anything_runs(self, says) -> None:
        persons = says(family="faster-rcnn")
        from lmm_classifier.steps.vote import Vote

        with pytest.raises(ConfigError, match="'vote' needs embeddings, neighbours"):
            run_shared([photo()], [RegionSelector("prominent_person").steps(), (Vote(),)])
        assert persons.shown == []

    def test_no_lines_and_no_photos(self) -> None:
        assert run_shared([photo()], []) == []
        assert run_shared([], [(EMBED,)]) == [[]]


class TestRealFaces:
    """MTCNN with its own weights on photographs that come with scikit-image."""

    @pytest.mark.parametrize(("name", "n", "box"), [
        ("astronaut", 1, (181, 62, 267, 172)),
        ("camera", 1, (199, 118, 254, 192)),
        ("coffee", 0, None),
    ])  # fmt: skip
    def test_as_many_faces_as_a_person_sees(self, name: str, n: int, box: tuple[int, ...] | None) -> None:
        image = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
        [found] = Detect(FACES).run([Sample.from_image(name, image)])
        faces = found.regions[1:]
        assert len(faces) == n
        if box:
            np.testing.assert_allclose(faces[0].box, box, atol=2)
            assert faces[0].score > 0.99

    def test_several_faces_and_a_tiny_one(self) -> None:
        face = Image.fromarray(skimage.data.astronaut()).crop((120, 0, 330, 240))
        scene = Image.new("RGB", (700, 300), (90, 110, 130))
        scene.paste(face, (20, 30))
        scene.paste(ImageOps.mirror(face), (300, 30))
        scene.paste(face.resize((70, 80)), (580, 100))
        [found] = Detect(FACES).run([Sample.from_image("scene", scene)])
        assert len(found.regions) == 4
        [largest] = Focus("face", "largest").run([found])
        assert largest.target is not None
        x0, _, x1, _ = largest.target.box
        assert x1 - x0 > 60

    @pytest.mark.parametrize("size", [(1, 1), (1, 2000), (2000, 19), (20, 20)])
    def test_a_photo_too_small_for_a_face(self, size: tuple[int, int]) -> None:
        assert load_detector(FACES).detect([Image.new("RGB", size)])[0].labels == ()

    def test_the_answer_does_not_depend_on_the_batch(self) -> None:
        images = [Image.fromarray(getattr(skimage.data, n)()).convert("RGB") for n in ("astronaut", "coffee")]
        together = load_detector(FACES).detect(images)
        for image, found in zip(images, together, strict=True):
            [alone] = load_detector(FACES).detect([image])
            np.testing.assert_array_equal(alone.boxes, found.boxes)
