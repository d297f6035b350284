"""The page of a review in Chromium, by keyboard."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from browser import Watched, chromium, tab
from reviewed import MARKUP, Reviewing, fresh, grouped, lines, make_run, reviewing
from served import Child, started

READY = "body:not(.busy) #tabs button"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("labelled"), mixed=24, yellow=8)


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return fresh(made, tmp_path)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@contextmanager
def page_of(browser: Browser, review: Reviewing, **options: Any) -> Iterator[Page]:
    """The page, which may ask no strangers, break no rule it is sent with, and not complain."""
    with tab(browser, review.served.url, READY, **options) as watched:
        yield watched.page
        assert watched.origins == {review.served.url}
        assert watched.complaints == []


@pytest.fixture
def anna(run: Path, made: Path) -> Iterator[Reviewing]:
    with reviewing(run, order=grouped, corpus=made.parent / "corpus") as review:
        yield review


@pytest.fixture
def page(browser: Browser, anna: Reviewing) -> Iterator[Page]:
    with page_of(browser, anna) as opened:
        yield opened


def shown(page: Page) -> str:
    """Name of the photo that is asked about."""
    page.wait_for_selector(READY)
    return page.locator("figcaption").inner_text()


def press(page: Page, *keys: str) -> None:
    """One key after another, each when the page is ready for it."""
    for key in keys:
        page.wait_for_selector(READY)
        page.keyboard.press(key)
    page.wait_for_selector(READY)


def give(page: Page, key: str, label: str) -> None:
    """Type a label."""
    press(page, key)
    page.keyboard.type(label)
    page.keyboard.press("Enter")
    page.wait_for_selector(READY)


def state(page: Page, text: str | re.Pattern[str]) -> None:
    expect(page.get_by_role("status").first).to_have_text(text)


KINDS = ("accept", "relabel", "typed", "new", "reject", "skip")


def answer(page: Page, kind: str) -> None:
    """One decision by keyboard; the known label of a typed one is completed."""
    if kind == "accept" and page.locator("#actions .main").count() == 0:
        kind = "reject"
    if kind in ("typed", "new"):
        give(page, {"typed": "/", "new": "l"}[kind], {"typed": "bl", "new": "tulip"}[kind])
    else:
        press(page, {"accept": "Enter", "relabel": "1", "reject": "x", "skip": "s"}[kind])


def test_thirty_decisions_and_a_crash_in_the_middle(browser: Browser, run: Path) -> None:
    """The command itself, killed before an answer: nothing is lost, and nothing twice."""
    asked: list[str] = []

    def command(port: int) -> tuple[str, ...]:
        return ("review", str(run), "--reviewer", "anna", "--no-open", "--port", str(port))

    with ExitStack() as stack:
        served, child = stack.enter_context(started(run / "log", *command(0)))
        watched: Watched = stack.enter_context(tab(browser, served.url, READY))
        page = watched.page
        for number in range(30):
            asked.append(shown(page))
            if number != 15:
                answer(page, KINDS[number % len(KINDS)])
                continue
            _kill(child)
            page.keyboard.press("x")
            expect(page.get_by_role("alert")).to_contain_text(f"--port {served.port}")
            page.keyboard.press("x")  # while nobody answers, a press more says nothing
            assert shown_still(page) == asked[-1]
            stack.enter_context(started(run / "log", *command(served.port)))
            expect(page.get_by_role("alert")).to_have_count(0)
            expect(page.locator("figcaption")).not_to_have_text(asked[-1])
        expect(page.locator("#done")).to_contain_text(" photos decided, ")
    told = lines(run)
    assert len(told) == 30
    assert [line["photos"][0][0] for line in told] == asked
    assert len(set(asked)) == len({line["id"] for line in told}) == 30
    assert {line["action"] for line in told} == {"accept", "relabel", "new", "reject", "skip"}
    assert {line["label"] for line in told if line["action"] == "new"} == {"tulip"}
    assert "blue" in {line["label"] for line in told if line["action"] == "relabel"}


def _kill(child: Child) -> None:
    child.process.send_signal(signal.SIGKILL)
    child.process.wait()


def shown_still(page: Page) -> str:
    return page.locator("figcaption").inner_text()


def test_two_reviewers_at_once(browser: Browser, run: Path) -> None:
    with (
        reviewing(run) as anna,
        reviewing(run, "ben") as ben,
        page_of(browser, anna) as hers,
        page_of(browser, ben) as his,
    ):
        photo = shown(hers)
        assert shown(his) == photo
        press(his, "x")
        give(hers, "n", "tulip")
        state(hers, "New label: tulip. Conflict: ben rejects it.")
        expect(his.locator("#tabs .conflict b")).to_have_text("1", timeout=8000)  # it looks by itself
        state(his, "A conflict has come up: see Conflicts.")
        his.get_by_role("button", name="Conflicts").click()
        expect(his.locator("figcaption")).to_have_text(photo)
        expect(his.locator(".said")).to_have_text(re.compile("anna says “tulip”.*ben .you. rejects it", re.S))
        give(his, "l", "tul")  # her label is known to him now
        expect(his.locator("#tabs .conflict b")).to_have_text("0")
        hers.locator("#tabs .others").click()
        expect(hers.locator(".empty")).to_be_visible()  # she has answered all that he has
    assert [(line["action"], line["label"]) for line in lines(run)] == [("new", "tulip")]
    assert [line["action"] for line in lines(run, "ben")] == ["reject", "relabel"]


def test_a_group_is_decided_at_once(page: Page, anna: Reviewing) -> None:
    expect(page.locator(".gallery li")).to_have_count(8)
    expect(page.locator("article.question h2")).to_have_text("Group: 8 of 8 photos")
    expect(page.locator("article.question")).to_contain_text("these are <b>alike</b>")
    press(page, "ArrowDown", "Space")
    assert shown(page) == "yellow-01.png"
    page.get_by_label("yellow-06.png is part of the group").click()
    expect(page.locator("article.question h2")).to_have_text("Group: 6 of 8 photos")
    page.keyboard.press("Enter")  # the box has the focus, and nothing was suggested
    press(page, "g", "x")
    state(page, "Rejected.")
    assert shown(page) == "yellow-02.png"
    expect(page.locator(".gallery small")).to_have_text(["rejects it"])
    press(page, "g")
    give(page, "n", "yellow")
    state(page, "New label: yellow, 6 photos.")
    assert shown(page) == "yellow-06.png"  # what was left out is asked by itself
    whole = lines(anna.run.folder)[-1]
    assert (whole["group"], len(whole["photos"])) == ("a/b <i>", 6)
    press(page, "u")
    state(page, "Taken back: new label yellow, 6 photos.")
    expect(page.locator(".gallery li")).to_have_count(8)
    press(page, "u")
    assert shown(page) == "yellow-01.png"
    expect(page.locator("#done")).to_have_text("0 of 33 photos decided, 33 left")


def test_undo_and_going_back(page: Page, anna: Reviewing) -> None:
    press(page, "u")
    state(page, "There is nothing to undo.")
    press(page, "ArrowRight")
    first = shown(page)
    press(page, "x")
    second = shown(page)
    press(page, "s", "u", "u")
    assert shown(page) == first
    state(page, "Taken back: rejected.")
    press(page, "ArrowRight")
    assert shown(page) == second
    press(page, "ArrowLeft", "ArrowLeft", "ArrowLeft")
    state(page, "That is the first one.")
    assert [line["action"] for line in lines(anna.run.folder)] == ["reject", "skip", "undo", "undo"]


def test_markup_is_shown_as_text(page: Page, anna: Reviewing) -> None:
    press(page, "ArrowRight")
    while shown(page) != MARKUP:
        press(page, "ArrowRight")
    press(page, "n")
    label = "<b onclick=x>bold"
    page.keyboard.type(label)
    expect(page.locator("#means")).to_have_text(f"Enter makes a new label: “{label}”. No photo has it yet.")
    expect(page.locator("#known li")).to_have_text([f"New label: {label}"])
    page.keyboard.press("Enter")
    state(page, f"New label: {label}.")
    expect(page.locator("#sofar .chip")).to_have_text([f"{label} 1"])
    press(page, "l")
    page.keyboard.type("BOLD")
    expect(page.locator("#means")).to_have_text(f"Enter gives the known label “{label}”.")
    page.keyboard.press("Escape")
    assert page.locator("main b[onclick], img[src=x]").count() == 0
    page.get_by_role("button", name="Mine").click()
    expect(page.locator("figcaption")).to_have_text(MARKUP)
    expect(page.locator(".said")).to_have_text(f"anna (you) says “{label}”")


def test_a_label_that_is_known_but_for_case_is_not_made_anew(page: Page, anna: Reviewing) -> None:
    give(page, "n", "ReD")
    state(page, "Labelled: red, 8 photos.")
    give(page, "n", "a/b")
    state(page, "A label becomes a folder: it has no slash, and does not start with a dot.")
    press(page, "n")
    page.keyboard.press("Enter")  # nothing was typed
    page.get_by_role("button", name="Cancel").click()
    assert [line["label"] for line in lines(anna.run.folder)] == ["red"]


def test_a_key_decides_once_and_the_mouse_can_do_all(page: Page, anna: Reviewing) -> None:
    press(page, "ArrowRight")
    for _ in range(5):
        page.keyboard.down("x")  # held: the browser repeats it
    page.keyboard.up("x")
    page.wait_for_selector(READY)
    assert len(lines(anna.run.folder)) == 1
    page.get_by_role("button", name="S Skip").click()
    expect(page.locator("#stage")).to_be_focused()  # or the next key would press that button again
    press(page, "Enter" if page.locator("#actions .main").count() else "x")
    page.locator(".choices button").first.click()
    page.get_by_role("button", name="Keys").click()
    expect(page.get_by_role("dialog")).to_contain_text("accept the suggestion")
    page.keyboard.press("x")  # not while the keys are shown
    page.get_by_role("button", name="Close").click()
    page.get_by_role("button", name="Undo").click()
    page.wait_for_selector(READY)
    assert len(lines(anna.run.folder)) == 5
    expect(page.locator("#done")).to_contain_text("1 skipped")


def test_the_end_and_photos_that_are_not_to_be_had(browser: Browser, tmp_path: Path) -> None:
    run = make_run(tmp_path, mixed=2, yellow=0)
    shutil.copy(tmp_path / "photos" / "mixed-00.png", tmp_path / "photos" / "mixed-01.png")
    (tmp_path / "photos" / "mixed-00.png").unlink()
    missing = {
        "mixed-00.png": "The photo is not to be had: there is no such file, or it is a link to nothing.",
        "mixed-01.png": "The photo has changed since it was labelled.",
    }
    with reviewing(run) as review, page_of(browser, review) as page:
        for _ in range(3):
            if (name := shown(page)) in missing:
                expect(page.locator(".photo .missing")).to_have_text(missing[name])
            press(page, "x")
        expect(page.locator(".empty")).to_contain_text("Nothing is left to do.")
        expect(page.locator("#sofar")).to_contain_text("rejected 3")
        press(page, "x", "Enter", "u")
        expect(page.locator("figcaption")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it(browser: Browser, anna: Reviewing, scheme: str) -> None:
    phone = {"viewport": {"width": 360, "height": 740}, "color_scheme": scheme, "has_touch": True}
    with page_of(browser, anna, **phone) as page:
        for key in ("ArrowDown", "ArrowRight"):
            press(page, key)
            inside = page.evaluate(
                "[...document.querySelectorAll('body *')].every(e => "
                "e.getBoundingClientRect().right <= innerWidth + 1)"
            )
            assert inside
        page.get_by_role("button", name="Reject").tap()
        state(page, "Rejected.")
        grounds = page.evaluate(
            "['body', 'article'].map(s => getComputedStyle(document.querySelector(s)).backgroundColor)"
        )
        assert all((int(re.findall(r"\d+", ground)[0]) > 128) == (scheme == "light") for ground in grounds)
