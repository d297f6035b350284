"""The page at / in Chromium: who can use it and how, what it keeps, what it never does, and how it fails."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Error, Page, expect

from browser import (
    Watched,
    canvas,
    choose,
    colour_settings,
    look,
    parameter,
    serving,
    tab,
)
from fitted import write_fitted
from html_page import HOSTILE, parsed
from lmm_classifier.service.app import PAGE
from served import Served

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("page")
    made = colour_settings(folder)
    write_fitted(folder / "index")
    return made


@pytest.fixture(scope="module")
def service(settings: dict[str, Any]) -> Iterator[Served]:
    with serving(settings) as running:
        yield running


def test_the_keyboard_is_enough(page: Page, red: Path) -> None:
    here = "() => [document.activeElement.id, getComputedStyle(document.activeElement).outlineWidth]"

    def tab_to(wanted: str) -> list[str]:
        passed = []
        while wanted not in passed:
            assert len(passed) < 60, passed
            page.keyboard.press("Tab")
            name, outline = page.evaluate(here)
            assert float(outline.removesuffix("px")) >= 2, f"{name} has the focus, and nobody sees it"
            passed.append(name)
        return passed

    # Choosers are caught from here on: an order given with the key itself may come after it.
    page.once("filechooser", lambda chooser: None)
    assert tab_to("photo") == ["", "photo"]  # after the link to the HTTP interface
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(red)
    expect(page.locator("#about")).to_contain_text("24 \u00d7 24 px")
    assert tab_to("operation-classify_hybrid") == ["operation-classify_hybrid"]
    tab_to("operation-segment_panoptic")
    page.keyboard.press("Space")
    assert "look" not in tab_to("look")[:-1]
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")  # in any field
    expect(page.get_by_role("status")).to_contain_text("red, known. Done in")
    both = canvas(page)
    while not page.evaluate("() => document.activeElement.closest('.regions')"):
        page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert (canvas(page) != both).any()


def test_everything_has_a_name(page: Page) -> None:
    fields = page.locator("input, select, button")
    names = fields.evaluate_all("all => all.map(each => (each.labels?.[0] ?? each).innerText.trim())")
    assert len(names) > 30
    assert "" not in names
    expect(page.get_by_label("Photo", exact=True).first).to_have_attribute("type", "file")
    described = page.get_by_role("checkbox", name="classify hybrid")
    expect(described).to_have_accessible_description(re.compile("^Classifies the image by its neighbours"))
    expect(page.get_by_role("group", name="What to do with it")).to_be_visible()
    expect(page.locator("html")).to_have_attribute("lang", "en")


DATA = """([name, bytes]) => {
  const data = new DataTransfer();
  data.items.add(new File([Uint8Array.from(atob(bytes), (each) => each.charCodeAt(0))], name));
  return data;
}"""
DROP = """dataTransfer => document.querySelector("header").dispatchEvent(
    new DragEvent("drop", {dataTransfer, bubbles: true, cancelable: true}))"""
PASTE = """clipboardData => document.body.dispatchEvent(
    new ClipboardEvent("paste", {clipboardData, bubbles: true}))"""


def test_dropped_and_pasted_photos_are_taken(page: Page, red: Path) -> None:
    encoded = base64.b64encode(red.read_bytes()).decode()
    dropped = page.evaluate_handle(DATA, ["dropped.png", encoded])
    assert not page.evaluate(DROP, dropped), "the browser would open the file in place of the page"
    expect(page.locator("#about")).to_contain_text("dropped.png, 0.00 MB, 24 \u00d7 24 px")
    pasted = page.evaluate_handle(DATA, ["pasted.png", encoded])
    page.evaluate(PASTE, pasted)
    expect(page.locator("#about")).to_contain_text("pasted.png")
    look(page, None, "classify_hybrid")
    expect(page.locator(".label strong")).to_have_text("red")


def test_the_chosen_operations_are_all_that_is_remembered(page: Page, red: Path) -> None:
    choose(page, red, "describe_image", "label_image")
    parameter(page, "describe_image", "prompt").fill("secret")
    look(page, None, "describe_image", "label_image")
    kept = page.evaluate("() => JSON.stringify([localStorage, sessionStorage, document.cookie])")
    assert json.loads(kept) == [{"lmm-classifier operations": '["describe_image","label_image"]'}, {}, ""]
    page.reload()
    chosen = page.locator("[name=operation]:checked")
    expect(chosen).to_have_count(2)
    assert [each.get_attribute("value") for each in chosen.all()] == ["describe_image", "label_image"]


POISON = HOSTILE + 80 * "x"  # a phone is narrower


def poisoned(value: Any) -> Any:
    """The same answer, with markup for every text that is not part of its form."""
    if isinstance(value, dict):
        kept = {"counts", "type", "cropped_image_base64", "allowed_targets", "default_target"}
        return {key: item if key in kept else poisoned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    return POISON if isinstance(value, str) and value != "success" else value


SHOWN = (".label strong", ".chip >> nth=0", "blockquote", "article.refused", "td small >> nth=0")
EVERYTHING = ("classify_hybrid", "segment_panoptic", "label_image", "describe_image", "embed_dino_v3")


@pytest.mark.parametrize("width", [1280, 360])
def test_markup_is_shown_as_text(browser: Browser, service: Served, red: Path, width: int) -> None:
    with tab(browser, service.url, viewport={"width": width, "height": 740}) as watched:
        page, name = watched.page, f"{HOSTILE.replace('/', '')}.png"
        listed = page.evaluate("async () => (await fetch('available_operations/')).json()")
        with page.expect_response("**/analyze_image_upload/") as heard:
            look(page, red, *EVERYTHING)
        answer = heard.value.json()
        page.route("**/available_operations/", lambda route: route.fulfill(json=poisoned(listed)))
        page.route("**/analyze_image_upload/", lambda route: route.fulfill(json=poisoned(answer)))
        page.reload()
        page.wait_for_selector("[name=operation]:checked")
        page.set_input_files("#photo", {"name": name, "mimeType": "image/png", "buffer": red.read_bytes()})
        page.get_by_role("button", name="Look").click()
        expect(page.get_by_role("status")).to_contain_text("Done in")
        expect(page.locator("#about")).to_contain_text(name)
        for place in (*SHOWN, "#operations p >> nth=0"):
            expect(page.locator(place)).to_contain_text(POISON)
        assert page.locator("script").count() == 1
        assert page.locator("img, [onerror]").count() == 0
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width
        assert watched.origins == {service.url}
        assert watched.complaints == []


def test_nothing_in_the_markup_needs_an_exception_from_the_rules(watched: Watched) -> None:
    tags = parsed(PAGE / "index.html")
    assert [attributes for tag, attributes in tags.seen if tag == "script"] == [("src", "type")]
    named = {name for _, attributes in tags.seen for name in attributes}
    assert not {name for name in named if name == "style" or name.startswith("on")}
    assert "style" not in {tag for tag, _ in tags.seen}
    first = watched.requests[0].response()
    assert first is not None
    assert first.headers["content-security-policy"].startswith("default-src 'self';")
    names = [request.url.rpartition("/")[2] for request in watched.requests if request.method == "GET"]
    assert {"page.css", "page.js", "photo.js", "results.js", "elements.js"} <= set(names)


LUMINANCE = np.asarray([0.2126, 0.7152, 0.0722])
TEXTS = """() => {
  const found = [], all = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (all.nextNode()) {
    const text = all.currentNode.data.trim(), element = all.currentNode.parentElement;
    if (!text || !element.checkVisibility()) continue;
    let ground = element;
    while (getComputedStyle(ground).backgroundColor === "rgba(0, 0, 0, 0)") ground = ground.parentElement;
    found.push([text, getComputedStyle(element).color, getComputedStyle(ground).backgroundColor]);
  }
  return found;
}"""
"""Each text that is seen, its colour, and that of its ground."""


def luminance(colour: str) -> float:
    """As WCAG 2.2 defines it, of an opaque colour."""
    shares = np.asarray(re.findall(r"[\d.]+", colour), float)
    assert len(shares) == 3, f"{colour} is not opaque"
    shares = shares / 255
    return float(LUMINANCE @ np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(browser: Browser, service: Served, red: Path, scheme: str) -> None:
    with tab(browser, service.url, color_scheme=scheme) as watched:
        page = watched.page
        look(page, red, *EVERYTHING)
        grounds = set()
        for text, colour, ground in page.evaluate(TEXTS):
            light, dark = sorted((luminance(colour), luminance(ground)), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{text!r}: {colour} on {ground}"
            grounds.add(round(luminance(ground), 2))
        assert (max(grounds) < 0.6) == (scheme == "dark")


def test_a_phone_has_room_for_all_of_it(browser: Browser, service: Served, red: Path) -> None:
    phone: dict[str, Any] = {"viewport": {"width": 360, "height": 740}, "device_scale_factor": 2}
    with tab(browser, service.url, **phone) as watched:
        page = watched.page
        look(page, red, "classify_hybrid", "segment_panoptic", "describe_image")
        page.locator("details").evaluate_all("all => all.forEach(each => { each.open = true; })")
        assert page.evaluate("() => document.documentElement.scrollWidth") <= 360
        box = page.locator("canvas").bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360
        assert canvas(page).shape[1] == round(2 * box["width"])  # as sharp as the screen
        assert 0 <= box["y"] < 740  # and where one looks


@pytest.mark.parametrize(
    ("limit", "sentence"),
    [
        ({"max_bytes": 200_000}, r"The photo is too large: a request may have 0\.2 MB\."),
        ({"rate": 7}, r"The service was asked too often\. Try again in \d seconds\."),
        (
            {"request_seconds": 2.0, "wait_seconds": 1.0},
            r"The service did not finish in time\. Try again in 5 seconds\.",
        ),
    ],
    ids=["413", "429", "503"],
)
def test_a_limit_is_told_in_a_sentence(
    browser: Browser, settings: dict[str, Any], tmp_path: Path, limit: dict[str, Any], sentence: str
) -> None:
    Image.effect_noise((600, 600), 80).save(tmp_path / "noise.png")
    settings = {**settings, "service": {**settings["service"], **limit}}
    with serving(settings) as service, tab(browser, service.url) as watched:
        choose(watched.page, tmp_path / "noise.png", "classify_hybrid")  # four steps, and each waits
        watched.page.get_by_role("button", name="Look").click()
        expect(watched.page.get_by_role("status")).to_have_text(re.compile(f"^{sentence}$"))
        expect(watched.page.get_by_role("button", name="Stop")).to_be_hidden()
        expect(watched.page.locator("article")).to_have_count(0)
        assert watched.complaints == []


def test_who_finds_it_full_is_told_to_try_again(
    browser: Browser, settings: dict[str, Any], red: Path
) -> None:
    settings = {**settings, "service": {**settings["service"], "at_once": 1, "wait_seconds": 1.0}}
    with (
        serving(settings) as service,
        tab(browser, service.url) as first,
        tab(browser, service.url) as second,
    ):
        for each in (first, second):
            choose(each.page, red, "describe_image")
        with first.page.expect_request("**/analyze_image_upload/"):
            first.page.get_by_role("button", name="Look").click()
        second.page.wait_for_timeout(200)
        second.page.get_by_role("button", name="Look").click()
        full = "The service is at its limits. Try again in a moment."
        expect(second.page.get_by_role("status")).to_have_text(full)
        expect(first.page.get_by_role("status")).to_contain_text("Done in")
        look(second.page, None, "describe_image")


def test_the_last_question_is_the_one_that_is_answered(
    browser: Browser, settings: dict[str, Any], red: Path
) -> None:
    settings = {**settings, "service": {**settings["service"], "wait_seconds": 1.0}}
    with serving(settings) as service, tab(browser, service.url) as watched:
        page, button = watched.page, watched.page.get_by_role("button", name="Look")
        choose(page, red, "label_image")
        with page.expect_event("requestfailed") as given_up:
            with page.expect_request("**/analyze_image_upload/"):
                button.click()
            choose(page, None, "describe_image")
            button.click()
        assert given_up.value.failure == "net::ERR_ABORTED"
        expect(page.get_by_role("status")).to_contain_text("Done in")
        page.wait_for_timeout(300)  # time in which the first could have come after all
        expect(page.locator("article h2")).to_have_text(["describe image"])
        button.click()
        page.get_by_role("button", name="Stop").click()
        expect(page.get_by_role("status")).to_have_text("Stopped.")
        expect(button).to_be_focused()
        expect(page.locator("article")).to_have_count(0)


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ({"status": 200, "body": "<html>"}, "The answer cannot be understood: is this really the service?"),
        ({"status": 502, "body": "<html>"}, "The service refused: status 502."),
        ({"status": 401, "json": {"detail": "a key", "code": "no_key"}}, "The service wants a key. Load"),
        (
            {"status": 503, "json": {"detail": "", "code": "not_ready"}},
            "The service is still opening its models.",
        ),
    ],
    ids=["no JSON", "a proxy's", "no key", "not ready"],
)
def test_what_else_may_come_is_told_in_a_sentence(
    page: Page, red: Path, answer: dict[str, Any], sentence: str
) -> None:
    page.route("**/analyze_image_upload/", lambda route: route.fulfill(**answer))
    choose(page, red, "describe_image")
    page.get_by_role("button", name="Look").click()
    expect(page.get_by_role("status")).to_contain_text(sentence)


def test_what_is_no_photo_is_refused(page: Page, tmp_path: Path) -> None:
    (tmp_path / "no.jpg").write_bytes(b"no photo")
    choose(page, tmp_path / "no.jpg", "describe_image")
    page.get_by_role("button", name="Look").click()
    refused = "The service refused: this is not a JPEG, PNG, WebP, GIF, BMP or TIFF image."
    expect(page.get_by_role("status")).to_have_text(refused)
    choose(page, None)
    page.get_by_role("button", name="Look").click()
    expect(page.get_by_role("status")).to_have_text("Choose something to do with the photo.")


def test_a_service_that_is_gone_may_come_back(browser: Browser, settings: dict[str, Any], red: Path) -> None:
    gone = "The service does not answer: is it running?"
    with serving(settings) as service, tab(browser, service.url) as watched:
        page = watched.page
        page.route("**/available_operations/", lambda route: route.abort())
        page.reload()
        expect(page.get_by_role("status")).to_have_text(gone)
        page.set_input_files("#photo", red)
        page.unroute("**/available_operations/")
        page.get_by_role("button", name="Look").click()
        expect(page.get_by_role("status")).to_contain_text("red, known. Done in")
        service.stop()
        page.get_by_role("button", name="Look").click()
        expect(page.get_by_role("status")).to_have_text(gone)


def test_the_browser_asks_for_the_key(browser: Browser, settings: dict[str, Any], red: Path) -> None:
    digest = hashlib.sha256(b"swordfish").hexdigest()
    settings = {**settings, "service": {**settings["service"], "api_keys": [f"sha256:{digest}"]}}
    with serving(settings) as service:
        with pytest.raises(Error, match="ERR_INVALID_AUTH_CREDENTIALS"):  # it asked, and nobody answered
            browser.new_page().goto(service.url)
        key = {"username": "-", "password": "swordfish"}
        with tab(browser, service.url, http_credentials=key) as watched:
            look(watched.page, red, "classify_hybrid")
            assert watched.page.locator("input[type=password]").count() == 0
            assert watched.complaints == []
