"""The page at / in Chromium: what of a photo is drawn and told."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageOps
from playwright.sync_api import Browser, Page, expect
from pycocotools import mask as coco

from browser import (
    canvas,
    choose,
    colour_settings,
    look,
    parameter,
    serving,
    tab,
)
from fitted import GATES, write_fitted
from lmm_classifier.collection.sources.source import SourceOptions, read_source
from lmm_classifier.collection.train import train
from lmm_classifier.pipeline import Pipeline
from lmm_classifier.regions import RegionSelector
from lmm_classifier.types import Sample
from served import FAKE, Served
from synthetic import COLOURS, picture

TINT = 0.45  # of a mask's colour in its pixels


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """With a collection for each colour."""
    folder = tmp_path_factory.mktemp("page")
    settings = colour_settings(folder, store=folder / "store")
    train(read_source(str(folder / "corpus"), SourceOptions({"fake": FAKE}), []), folder / "store")
    with serving(settings) as running:
        yield running


def colour_of(page: Page, row: int = 0) -> np.ndarray:
    style = "element => getComputedStyle(element).backgroundColor"
    found = page.locator(".swatch").nth(row).evaluate(style)
    return np.asarray(re.findall(r"\d+", found)[:3], int)


def column(page: Page, caption: str, cell: str = "td:first-child") -> list[str]:
    """Of the table of that name, what is folded away included."""
    whole = page.locator(f"article > div > :is(table, div):has(caption:text-is('{caption}'))")
    return whole.locator(cell).all_text_contents()


def blended(share: float) -> Image.Image:
    """Red, and so much green."""
    return Image.blend(picture(COLOURS["red"], 7), picture(COLOURS["green"], 8), share)


def halved() -> Image.Image:
    """Red, and its right half blue: like no picture of the index."""
    photo = picture(COLOURS["red"], 7)
    photo.paste(picture(COLOURS["blue"], 3), (12, 0))
    return photo


@pytest.mark.parametrize(
    ("photo", "rerank", "status"),
    [
        (blended(0.0), "green", "known"),
        (blended(0.5), "green", "known"),
        (blended(0.5), "fails", "uncertain"),
        (halved(), "green", "unknown"),
    ],
    ids=["by retrieval", "by the reranker", "uncertain", "unknown"],
)
def test_the_decision_is_that_of_the_classifier(
    browser: Browser, tmp_path: Path, photo: Image.Image, rerank: str, status: str
) -> None:
    settings = colour_settings(tmp_path)
    settings["rerank"]["model_name"] = rerank
    write_fitted(tmp_path / "index", gates=replace(GATES, known=0.67))
    photo.save(tmp_path / "photo.png")
    with serving(settings) as service, tab(browser, service.url) as watched:
        look(watched.page, tmp_path / "photo.png", "classify_hybrid")
        answer = service.classifier.classify(tmp_path / "photo.png")
        assert answer.status == status
        assert answer.used_reranker == (rerank == "green" and answer.possible == ("red", "green"))
        shown = told(watched.page)
        assert watched.complaints == []
    assert shown.pop("steps") == ["decode", *(words(step) for step in answer.timings)]
    assert shown == {
        "state": "unknown." if answer.label == "unknown" else f"{answer.label}, {answer.status}.",
        "label": [answer.label],
        "badge": [answer.status],
        "reason": [answer.reason],
        "decided by": words(answer.stage),
        "score": f"{answer.score:.3f}",
        "without the reranker": answer.retrieval_label if answer.used_reranker else None,
        "looks known": f"{answer.closeness:.3f}",
        "p-value": f"{answer.p_value:.3f}",
        "route": answer.route,
        "notes": [answer.degraded] if answer.degraded else [],
        "possible": list(answer.possible),
        "candidates": [(candidate.label, f"{candidate.score:.3f}") for candidate in answer.candidates],
        "neighbours": [(n.label + n.path, f"{n.similarity:.3f}") for n in answer.neighbours],
    }


def words(name: str) -> str:
    return name.replace("_", " ")


def told(page: Page) -> dict[str, Any]:
    """All that the page says of a decision, what is folded away included."""

    def texts(of: str) -> list[str]:
        return page.locator(of).all_text_contents()

    def rows(caption: str) -> list[tuple[str, str]]:
        table = f"article > div > :is(table, div):has(caption:text-is('{caption}'))"
        return list(zip(texts(f"{table} td:nth-child(1)"), texts(f"{table} td:nth-child(2)"), strict=True))

    facts = dict(zip(texts("dt"), texts("dd"), strict=True))
    named = ("decided by", "score", "without the reranker", "looks known", "p-value", "route")
    return {
        **{name: facts.get(name) for name in named},
        "state": page.get_by_role("status").inner_text().partition(" Done")[0],
        "label": texts(".label strong"),
        "badge": texts(".label .badge"),
        "reason": texts(".label + p"),
        "notes": texts(".note"),
        "possible": texts(".chip"),
        "candidates": rows("Candidates"),
        "neighbours": rows("Neighbours"),
        "steps": texts("details:has(summary:text('Time')) tbody td:first-child"),
    }


def face_in(photo: Image.Image) -> tuple[int, int, int, int]:
    """Its box, by the steps themselves."""
    [sample] = Pipeline(RegionSelector("prominent_face", "whole_image").steps()).run(
        [Sample.from_image("face", photo)]
    )
    assert sample.target is not None
    return sample.target.box


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_box_is_drawn_where_the_face_is(page: Page, tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = Image.fromarray(skimage.data.astronaut()[:400]).convert("RGB")
    stored = upright.rotate(90, expand=True) if orientation == 6 else upright
    stored.save(tmp_path / "face.jpg", quality=95, exif=exif)
    shown = ImageOps.exif_transpose(Image.open(tmp_path / "face.jpg"))
    x0, y0, x1, y1 = face_in(shown)
    np.testing.assert_allclose((x0, y0, x1, y1), (181, 62, 267, 172), atol=3)
    choose(page, tmp_path / "face.jpg", "detect_bounding_box")
    parameter(page, "detect_bounding_box", "target").select_option("prominent_face")
    parameter(page, "detect_bounding_box", "face_context").select_option("whole_image")
    look(page, None, "detect_bounding_box")
    expect(page.locator(".regions li")).to_contain_text(f"{x1 - x0} \u00d7 {y1 - y0} px at {x0}, {y0}")
    drawn = canvas(page)
    scale = drawn.shape[1] / 512
    assert drawn.shape[0] == round(400 * scale)
    is_line = np.abs(drawn.astype(int) - colour_of(page)).max(axis=2) < 12
    across = np.flatnonzero(is_line[round((y0 + y1) / 2 * scale)])
    down = np.flatnonzero(is_line[round(y0 * scale) + 10 :, round((x0 + x1) / 2 * scale)])
    np.testing.assert_allclose([across[0], across[-1]], [x0 * scale, x1 * scale], atol=2.5)
    np.testing.assert_allclose(down[-1] + round(y0 * scale) + 10, y1 * scale, atol=2.5)
    assert len(across) <= 2 * 4  # two lines, and between them the photo


def test_photos_are_upright_whatever_the_camera_says(page: Page, tmp_path: Path) -> None:
    quarters = Image.new("RGB", (60, 40), "white")
    quarters.paste("red", (0, 0, 30, 20))
    quarters.paste("blue", (30, 20, 60, 40))
    for orientation, kind in [(o, kind) for o in range(1, 9) for kind in ("jpg", "png")]:
        path, exif = tmp_path / f"{orientation}.{kind}", Image.Exif()
        exif[0x0112] = orientation
        quarters.save(path, quality=95, exif=exif)
        expected = ImageOps.exif_transpose(Image.open(path))
        choose(page, path)
        expect(page.locator("#about")).to_contain_text(
            f"{path.name}, 0.00 MB, {expected.width} \u00d7 {expected.height} px"
        )
        drawn = canvas(page)
        seen = np.asarray(Image.fromarray(drawn).resize(expected.size, Image.Resampling.NEAREST), int)
        np.testing.assert_allclose(seen[5::10, 5::10], np.asarray(expected, int)[5::10, 5::10], atol=16)


def grained(width: int, height: int = 90) -> Image.Image:
    """Bright and dark pixels, so mixed that no part has room for its name."""
    bright = np.random.default_rng(0).random((height, width)) < 0.5
    return Image.fromarray(np.where(bright, np.uint8(200), np.uint8(60))).convert("RGB")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("orientation", [1, 8])
def test_exactly_the_pixels_of_a_mask_are_tinted(page: Page, tmp_path: Path, orientation: int) -> None:
    width = page.evaluate("() => document.querySelector('#stage').clientWidth")  # drawn pixel by pixel then
    upright, exif = grained(width), Image.Exif()
    exif[0x0112] = orientation
    stored = upright.rotate(-90, expand=True) if orientation == 8 else upright
    stored.save(tmp_path / "grained.png", exif=exif)
    with page.expect_response("**/analyze_image_upload/") as heard:
        look(page, tmp_path / "grained.png", "segment_panoptic")
    parts = heard.value.json()["results"]["segment_panoptic"]["data"]
    assert [part["label"] for part in parts] == ["bright", "dark"]
    for shown in (0, 1):
        page.locator(".regions input").nth(shown).check()
        page.locator(".regions input").nth(1 - shown).uncheck()
        page.mouse.move(0, 0)
        page.locator("#photo").focus()  # what is pointed at stands out
        mask = coco.decode({**parts[shown]["mask"], "counts": parts[shown]["mask"]["counts"].encode()}) == 1
        photo = np.asarray(upright, float)
        mixed = (1 - TINT) * photo + TINT * colour_of(page, shown)
        np.testing.assert_allclose(canvas(page), np.where(mask[..., None], mixed, photo), atol=2)
    assert 0.3 < mask.mean() < 0.7


def test_a_photo_that_the_browser_cannot_show_is_told_of_all_the_same(
    page: Page, service: Served, tmp_path: Path
) -> None:
    photo = Image.fromarray(skimage.data.astronaut()[:400])
    photo.save(tmp_path / "photo.tif")
    choose(page, tmp_path / "photo.tif", "classify_hybrid", "detect_bounding_box")
    expect(page.locator("#about")).to_contain_text("photo.tif, 0.61 MB. This browser cannot show it")
    parameter(page, "detect_bounding_box", "target").select_option("prominent_face")
    parameter(page, "detect_bounding_box", "face_context").select_option("whole_image")
    look(page, None, "classify_hybrid", "detect_bounding_box")
    expect(page.locator(".label strong")).to_have_text(
        service.classifier.classify(tmp_path / "photo.tif").label
    )
    crop = page.get_by_role("img", name="What was looked at: face")
    x0, y0, x1, y1 = face_in(photo)
    assert crop.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [x1 - x0, y1 - y0]
    expect(page.locator("canvas")).to_be_hidden()
    look(page, None, "segment_panoptic")
    drawn = canvas(page)  # the masks tell its size
    assert drawn.shape[0] / drawn.shape[1] == pytest.approx(400 / 512, abs=0.01)
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 2


def test_a_click_into_the_photo_says_what_to_segment(page: Page, tmp_path: Path) -> None:
    halves = Image.new("RGB", (200, 100), "black")
    halves.paste("white", (120, 0, 200, 100))
    halves.save(tmp_path / "halves.png")
    choose(page, tmp_path / "halves.png", "segment")
    scale = canvas(page).shape[1] / 200
    page.locator("canvas").click(position={"x": 160.5 * scale, "y": 30.5 * scale})
    page.locator("canvas").click(position={"x": 20.5 * scale, "y": 40.5 * scale}, modifiers=["Shift"])
    expect(parameter(page, "segment", "points")).to_have_value("160, 30")
    expect(parameter(page, "segment", "negative_points")).to_have_value("20, 40")
    with page.expect_response("**/analyze_image_upload/") as heard:
        look(page, None, "segment")
    [part] = heard.value.json()["results"]["segment"]["data"]
    assert part["bbox"] == [120, 0, 200, 100]
    expect(page.locator(".regions li")).to_contain_text("80 \u00d7 100 px at 120, 0")


def test_parameters_are_sent_as_they_are_chosen(page: Page, red: Path) -> None:
    choose(page, red, "describe_image", "classify", "label_image")
    expect(parameter(page, "classify", "collection_id").locator("option")).to_have_text(
        [f"{name} (whole image)" for name in sorted(COLOURS)]
    )
    parameter(page, "describe_image", "max_length").fill("1")
    parameter(page, "describe_image", "prompt").fill("there are")
    parameter(page, "label_image", "top_k").fill("2")
    for name, text in (("red", "It belongs"), ("blue", "It does not belong")):
        parameter(page, "classify", "collection_id").select_option(name)
        look(page, None, "describe_image", "classify", "label_image")
        expect(page.locator("article:has(h2:text-is('classify')) strong")).to_contain_text(text)
    expect(page.locator("blockquote")).to_have_text("there are 24")
    labels = page.locator("article:has(h2:text-is('label image')) tbody td:first-child")
    expect(labels).to_have_text(["red", "green"])
    parameter(page, "describe_image", "max_length").fill("0")
    page.get_by_role("button", name="Look").click()
    assert parameter(page, "describe_image", "max_length").evaluate("field => field.validity.rangeUnderflow")


def test_damaged_collections_cost_nothing_else(browser: Browser, tmp_path: Path, red: Path) -> None:
    (tmp_path / "best_models.json").write_text("{", encoding="utf-8")
    with serving(colour_settings(tmp_path, store=tmp_path)) as service, tab(browser, service.url) as watched:
        page = watched.page
        answer = page.evaluate("async () => (await fetch('collections/')).json()")
        assert answer == {
            "detail": "the collections cannot be read; the log tells more",
            "code": "unusable_store",
        }
        look(page, red, "classify", "describe_image")
        expect(parameter(page, "classify", "collection_id").locator("option")).to_have_text(["there is none"])
        expect(page.locator("article.refused")).to_contain_text("invalid_parameters")
        expect(page.locator("blockquote")).to_have_text("a picture of 24 by 24 pixels")


def test_each_task_fails_alone(page: Page, red: Path) -> None:
    choose(page, red, "embed_dino_v2", "embed_dino_v3", "describe_image", "classify_hybrid")
    parameter(page, "describe_image", "target").select_option("prominent_face")
    parameter(page, "describe_image", "face_context").select_option("whole_image")
    look(page, None, "embed_dino_v2", "embed_dino_v3", "describe_image", "classify_hybrid")
    expect(page.locator(".label strong")).to_have_text("red")
    expect(page.locator("article:has(h2:text-is('embed dino v2'))")).to_contain_text(
        "48 numbers, of length 1"
    )
    failed = page.locator("article:has(h2:text-is('embed dino v3'))")
    expect(failed).to_contain_text("error The model of this operation is not here. model_unavailable")
    skipped = page.locator("article:has(h2:text-is('describe image'))")
    expect(skipped).to_contain_text("skipped No face was found. no_face")
    expect(page.get_by_role("status")).to_contain_text("2 of 4 could not be done.")


def test_what_was_not_found_is_told(page: Page, red: Path) -> None:
    region = {"requested": "prominent_person", "used": "whole_image", "bbox": [0, 0, 24, 24], "score": None}
    results: dict[str, dict[str, Any]] = {
        "describe_image": {"data": "red", "region": {**region, "fallback": "no person was found"}},
        "detect_bounding_box": {"data": None},
        "classify": {"data": {"is_in_collection": None, "probability": 0.5}},
        "segment": {"data": []},
        "label_image": {"status": "error", "error_message": None, "error_code": None},
    }
    whole = {name: {"status": "success", **result} for name, result in results.items()}
    answer = {"image_url": "uploaded:red.png", "results": whole}
    page.route("**/analyze_image_upload/", lambda route: route.fulfill(json=answer))
    look(page, red, *results)
    told = {card.locator("h2").inner_text(): card.inner_text() for card in page.locator("article").all()}
    assert "The whole image was looked at: no person was found." in told["describe image"]
    assert "Nothing was found." in told["detect bounding box"]
    assert "It may belong to the collection" in told["classify"]
    assert "Nothing was found." in told["segment"]
    assert told["label image"].split() == ["label", "image", "error"]
    assert page.locator(".swatch").count() == 0


HEARTBEAT = """() => {
  let last = performance.now();
  window.longest = 0;
  setInterval(() => {
    const now = performance.now();
    window.longest = Math.max(window.longest, now - last);
    last = now;
  }, 5);
}"""


def test_a_large_photo_freezes_nothing(page: Page, tmp_path: Path) -> None:
    picture(COLOURS["red"], side=60).resize((6000, 4000)).save(tmp_path / "large.jpg")
    page.evaluate(HEARTBEAT)
    look(page, tmp_path / "large.jpg", "segment_panoptic")
    assert page.evaluate("() => longest") < 1000  # ms, of a busy machine
    kept = page.evaluate("async () => (await import('/photo.js')).photo.picture.width")
    assert kept == 2048  # not 96 MB of pixels that no screen shows
    assert max(canvas(page).shape) < 1000
