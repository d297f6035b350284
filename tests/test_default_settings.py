"""The defaults, as shipped: every family is downloaded from an imitation of the hub, and used again offline.

Under the names of the published checkpoints lie tiny ones of the same classes; encoder and reranker are those
of the demo, so that answers mean something.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save

import lmm_classifier
from hub_cache import files_in
from lmm_classifier.checkpoints.digits import write_digits
from lmm_classifier.models.runtime.default_checkpoints import default_checkpoints
from mini_hub import COMMIT, LARGE, MiniHub, Repositories, serving
from segmentation_graphs import write_detr, write_echo, write_encoder
from served import started
from shell import run_all
from tiny_models import WRITERS as ENCODERS
from tiny_vision import WRITERS as OTHERS

ROOT = Path(__file__).parents[1]
CHECKPOINTS = Path(lmm_classifier.__file__).parent / "checkpoints"
PER_LABEL = 20
QUERIES = 12  # of the knowns, and as many of the unknowns
TIMES = ("timings", "seconds", "seconds_per_photo")
NAMED = {"dinov3": "acme/dinov3", "image-text-to-text": "acme/chat"}
"""Families without default weights that take some from the hub."""
STEPS = """
pipeline:
- detect: {model: {family: objects}}
- segment: {points: [[20, 20]]}
- segment_panoptic: {min_score: 0.3}
- label: {model: {family: image-classifier}}
- caption: {model: {family: blip}, max_length: 5}
"""
MORE_STEPS = """
pipeline:
- caption: {model: {family: image-text-to-text, weights: acme/chat}, max_length: 5}
"""


def random_clip() -> bytes:
    """Of the default's size, since its files do not say how large it is: in half precision, as some are."""
    torch.manual_seed(0)
    model = open_clip.CLIP(**open_clip.get_model_config("ViT-B-32-quickgelu"))
    return save({name: tensor.half() for name, tensor in model.state_dict().items()})


def written(writer: Callable[[Path], Any], folder: Path) -> dict[str, bytes]:
    writer(folder)
    return files_in(folder)


def segmenter(folder: Path) -> None:
    write_encoder(folder / "encoder.onnx")
    write_echo(folder / "decoder.onnx", 100)


def panoptic(folder: Path) -> None:
    logits = np.asarray([[9.0, 0, 0], [0, 9.0, 0]], np.float32)  # a thing, a stuff, and "nothing"
    kernels, biases = np.zeros((2, 3), np.float32), np.asarray([5.0, 1.0], np.float32)
    write_detr(folder, logits, kernels, biases, {0: "cat", 1: "grass-merged"})


def published(root: Path) -> Repositories:
    """All defaults of the registry, and the checkpoints of `NAMED`."""
    writers: dict[str, Callable[[Path], Any]] = {
        **ENCODERS,
        **OTHERS,
        "siglip": partial(shutil.copytree, CHECKPOINTS / "siglip-digits"),
        "qwen-vl": partial(shutil.copytree, CHECKPOINTS / "qwen2-vl-digits"),
        "image-text-to-text": partial(shutil.copytree, CHECKPOINTS / "qwen2-vl-digits"),
        "sam2": segmenter,
        "detr-panoptic": panoptic,
    }
    wanted = {family: entry.hub_id or entry.weights for _, family, entry in default_checkpoints()} | NAMED
    clip = {"open_clip_model.safetensors": random_clip()}
    return {
        hub_id: clip if family == "clip" else written(writers[family], root / family)
        for family, hub_id in wanted.items()
    }


@dataclass(frozen=True)
class Home:
    """A newcomer's folder: config/default.yaml as shipped, photos, and a cache that is empty at first."""

    folder: Path
    endpoint: str

    @property
    def photos(self) -> list[Path]:
        folders = (self.folder / name for name in ("query", "query_unknown"))
        return sorted(photo for folder in folders for photo in folder.rglob("*.png"))

    def run(self, *commands: Sequence[str | Path], offline: bool = False) -> list[str]:
        """What commands print, one after the other."""
        ended = run_all(commands, self.folder, **self.environment(offline))
        assert [end.returncode for end in ended] == [0] * len(ended), [end.stderr for end in ended]
        return [end.stdout for end in ended]

    def environment(self, offline: bool) -> dict[str, str]:
        shut = "http://127.0.0.1:9"  # where nobody listens
        return {
            "HF_HUB_CACHE": str(self.folder / "hub"),
            "HF_ENDPOINT": shut if offline else self.endpoint,
            "HF_HUB_OFFLINE": str(int(offline)),
        }


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MiniHub]:
    with serving(published(tmp_path_factory.mktemp("published"))) as hub:
        yield hub


@pytest.fixture(scope="module")
def home(hub: MiniHub, tmp_path_factory: pytest.TempPathFactory) -> Home:
    folder = tmp_path_factory.mktemp("home")
    write_digits(folder / "digits")
    for split, n in (("index", PER_LABEL), ("query", QUERIES // 6), ("query_unknown", QUERIES // 4)):
        for label in sorted((folder / "digits" / split).iterdir()):
            for photo in islice(sorted(label.iterdir()), n):
                place = folder / "photos" / label.name if split == "index" else folder / split / label.name
                place.mkdir(parents=True, exist_ok=True)
                shutil.copy(photo, place)
    shutil.copytree(ROOT / "config", folder / "config")
    (folder / "steps.yaml").write_text(STEPS)
    (folder / "more_steps.yaml").write_text(MORE_STEPS)
    return Home(folder, hub.url)


@dataclass(frozen=True)
class Answers:
    """What the public commands say with the default settings, but for times."""

    classified: list[dict[str, Any]]
    labelled: dict[str, int]
    evaluated: dict[str, Any]
    served: list[dict[str, Any]]
    steps: list[dict[str, Any]]


@pytest.fixture(scope="module")
def online(home: Home) -> Answers:
    """From an empty cache; the index is of all encoders that come from the hub, the default first."""
    names = ("siglip", "clip", "dinov2", "dinov2-timm", "dinov3=acme/dinov3")
    encoders = [option for name in names for option in ("--encoder", name)]
    home.run(("index", "build", "photos", "--output", "indexes/photos", *encoders))
    return answers(home, offline=False)


@pytest.fixture(scope="module")
def offline(home: Home, online: Answers, hub: MiniHub) -> Answers:
    seen = len(hub.asked)
    found = answers(home, offline=True)
    assert len(hub.asked) == seen
    return found


def answers(home: Home, offline: bool) -> Answers:
    settings = ("-c", "config/default.yaml")
    labelled = f"labelled-{offline}"
    unknowns = ("--near", "query_unknown", "--resamples", "10")
    photo = home.photos[0]
    _, evaluated, classified, *steps = home.run(
        ("label", "run", "query_unknown", *settings, "-o", labelled),
        ("evaluate", "query", *settings, *unknowns, "--json"),
        ("classify", "query", "query_unknown", *settings, "--json"),
        ("pipeline", photo, "-c", "steps.yaml"),
        ("pipeline", photo, "-c", "more_steps.yaml"),
        offline=offline,
    )
    return Answers(
        timeless([json.loads(line) for line in classified.splitlines()]),
        json.loads((home.folder / labelled / "run.json").read_text("utf-8"))["counts"],
        timeless(json.loads(evaluated)["stages"]),
        timeless(served(home, offline)),
        timeless([json.loads(step) for step in steps]),
    )


def served(home: Home, offline: bool) -> list[dict[str, Any]]:
    command = ("serve", "--config", home.folder / "config/default.yaml", "--port", "0")
    with started(home.folder / "service.log", *command, **home.environment(offline)) as (service, _):
        return [service.result(photo.read_bytes(), "classify_hybrid") for photo in home.photos]


def timeless(found: Any) -> Any:
    """An answer without what differs from run to run."""
    if isinstance(found, list):
        return [timeless(each) for each in found]
    if isinstance(found, dict):
        return {key: timeless(each) for key, each in found.items() if key not in TIMES}
    return found


def test_every_family_of_the_registry_is_downloaded(home: Home, online: Answers, hub: MiniHub) -> None:
    for repo in hub.repositories:
        snapshot = home.folder / "hub" / f"models--{repo.replace('/', '--')}" / "snapshots" / COMMIT
        assert any(path.suffix in LARGE for path in snapshot.rglob("*")), repo


def test_photos_are_answered_and_the_reranker_is_asked(home: Home, online: Answers) -> None:
    assert len(online.classified) == len(home.photos)
    assert all(answer["label"] for answer in online.classified)
    assert any(answer["used_reranker"] for answer in online.classified)
    assert online.labelled["degraded"] == 0
    assert online.evaluated["share_reranked"] > 0
    assert any(answer["data"]["used_reranker"] for answer in online.served)


def test_every_step_finds_something(online: Answers) -> None:
    steps, more_steps = online.steps
    found = Counter(region["source"] for region in steps["regions"])
    assert found["detect"] >= 1
    assert found["segment"] == 1
    assert found["segment_panoptic"] == 1
    assert len(steps["labelings"]) == len(steps["captions"]) == len(steps["regions"])
    assert more_steps["captions"][0]


def test_offline_the_answers_are_the_same(online: Answers, offline: Answers) -> None:
    assert offline == online
