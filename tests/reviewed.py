"""A small labelling run, and reviews of it."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from lmm_classifier.labelling.annotation_log import SUFFIX
from lmm_classifier.labelling.review_items import ReviewItem, by_certainty
from lmm_classifier.labelling.run import label_photos
from lmm_classifier.labelling.run_store import LabellingRun
from lmm_classifier.review.app import SETTINGS, create_review
from served import Reply, Served, classifier, listening, make_index
from synthetic import COLOURS, picture

MARKUP = "<img src=x onerror=alert(1)>.png"
YELLOW = (200, 200, 40)  # like no label of the index


def make_run(folder: Path, mixed: int = 12, yellow: int = 6) -> Path:
    """folder/run of photos between red and green, of yellow ones, of one with markup and a broken one."""
    photos = folder / "photos"
    photos.mkdir()
    for i in range(mixed):
        red, green = picture(COLOURS["red"], i, 64), picture(COLOURS["green"], 50 + i, 64)
        Image.blend(red, green, i / max(mixed - 1, 1)).save(photos / f"mixed-{i:02d}.png")
    for i in range(yellow):
        picture(YELLOW, 100 + i, 64).save(photos / f"yellow-{i:02d}.png")
    Image.new("RGB", (1500, 600), (20, 20, 20)).save(photos / MARKUP)
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff no")
    label_photos(photos, classifier(make_index(folder)), folder / "run")
    return folder / "run"


def fresh(run: Path, folder: Path) -> Path:
    """The same run elsewhere, without decisions; photos and index stay where they are."""
    shutil.copytree(run, folder / "run")
    return folder / "run"


MakesOrder = Callable[[LabellingRun, Mapping[int, str | None]], tuple[ReviewItem, ...]]


def grouped(run: LabellingRun, decided: Mapping[int, str | None]) -> tuple[ReviewItem, ...]:
    """The yellow photos as a group that comes first, then the others."""
    paths = run.columns("path")["path"].to_pylist()
    yellow = tuple(row for row, path in enumerate(paths) if path.startswith("yellow"))
    group = ReviewItem("group", yellow[:2], yellow, None, 9.0, "these are <b>alike</b>", "a/b <i>")
    return (group, *(item for item in by_certainty(run, decided) if item.members[0] not in yellow))


@dataclass(frozen=True)
class Reviewing:
    """A review that listens, and what its page knows."""

    served: Served
    run: LabellingRun
    review: str

    def get(self, path: str, **headers: str) -> Reply:
        return self.served.ask("GET", path, headers)

    def post(self, path: str, body: dict[str, Any], **headers: str) -> Reply:
        return self.served.ask("POST", path, headers, json=body)

    def decide(self, item: str, action: str, rows: list[int], label: str | None = None, **more: Any) -> Reply:
        body = {"id": uuid.uuid4().hex, "review": self.review, "item": item, "action": action, "rows": rows}
        return self.post("/decisions", {**body, "label": label, **more})

    def undo(self, **more: Any) -> Reply:
        return self.post("/undo", {"id": uuid.uuid4().hex, "review": self.review, **more})

    def queue(self, show: str = "open", **more: Any) -> list[dict[str, Any]]:
        query = "".join(f"&{key}={value}" for key, value in more.items())
        reply = self.get(f"/queue?show={show}&limit=200{query}")
        assert reply.status == 200, reply.body
        found: list[dict[str, Any]] = reply.json
        return found


@contextmanager
def reviewing(
    folder: Path, reviewer: str = "anna", order: MakesOrder | None = None, **options: Any
) -> Iterator[Reviewing]:
    run = LabellingRun(folder)
    made = None if order is None else partial(order, run)
    with listening(create_review(run, reviewer, order=made, **options), SETTINGS) as served:
        yield attached(served, run)


def attached(served: Served, run: LabellingRun) -> Reviewing:
    return Reviewing(served, run, served.ask("GET", "/run").json["review"])


def lines(run: Path, reviewer: str = "anna") -> list[dict[str, Any]]:
    """What a reviewer's log holds."""
    path = run / "decisions" / f"{reviewer}{SUFFIX}"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
