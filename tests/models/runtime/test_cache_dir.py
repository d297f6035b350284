"""Checkpoints in a cache of one's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

import lmm_classifier
import tiny_models
import tiny_vision
from hub_cache import COMMIT, files_in, write_cached
from lmm_classifier.errors import ModelUnavailableError
from lmm_classifier.models import loading
from lmm_classifier.models.loading import load_text_encoder
from lmm_classifier.models.spec import ModelSpec
from segmentation_graphs import write_decoder, write_detr, write_encoder

ENCODERS = ("siglip", "clip", "dinov2", "dinov2-timm", "dinov3", "dinov3-patch")
HUB_ID = "org/tiny"
CHECKPOINTS = Path(lmm_classifier.__file__).parent / "checkpoints"


def write_sam2(folder: Path) -> str:
    write_encoder(folder / "encoder.onnx")
    write_decoder(folder / "decoder.onnx", np.zeros((1, 256, 256), np.float32), (0.9,))
    return str(folder)


def write_panoptic(folder: Path) -> str:
    return write_detr(folder, np.zeros((2, 4), np.float32), np.zeros((2, 3)), np.zeros(2), {0: "sky"})


OTHERS = {
    ("detector", "objects"): tiny_vision.write_rt_detr,
    ("classifier", "image-classifier"): tiny_vision.write_convnext,
    ("captioner", "blip"): tiny_vision.write_blip,
    ("segmenter", "sam2"): write_sam2,
    ("panoptic", "detr-panoptic"): write_panoptic,
}
WRITERS = {**{("encoder", name): tiny_models.WRITERS[name] for name in ENCODERS}, **OTHERS}


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's own cache: empty."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "nowhere"))
    return tmp_path / "nowhere"


@pytest.mark.parametrize(("kind", "family"), WRITERS)
def test_a_checkpoint_is_found_in_its_cache_and_nowhere_else(
    kind: str, family: str, tmp_path: Path, nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline; where settings say nothing, the hub's own setting is followed."""
    cache = tmp_path / "cache"
    write_cached(cache, HUB_ID, files_in(WRITERS[kind, family](tmp_path / "written")))
    opened = loading.open_model(kind, ModelSpec(family, HUB_ID, cache_dir=cache))  # type: ignore[arg-type]
    spec = ModelSpec(family, HUB_ID)
    with pytest.raises(ModelUnavailableError, match="'org/tiny' is neither on this machine nor reachable"):
        loading.open_model(kind, spec)  # type: ignore[arg-type]
    loading.reset()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    by_environment = loading.open_model(kind, spec)  # type: ignore[arg-type]
    if kind == "encoder":
        assert opened.contract == by_environment.contract  # where the files lie decides no vector
    elsewhere = ModelSpec(family, HUB_ID, cache_dir=nowhere)
    with pytest.raises(ModelUnavailableError) as caught:
        loading.open_model(kind, elsewhere)  # type: ignore[arg-type]
    assert str(caught.value).startswith(f"model 'org/tiny' is neither in {nowhere} nor reachable: connect")
    assert "\n" not in str(caught.value)


def test_the_text_tower_comes_from_the_same_cache(tmp_path: Path, nowhere: Path) -> None:
    folder = tiny_models.WRITERS["clip"](tmp_path / "written")
    write_cached(tmp_path / "cache", HUB_ID, files_in(folder))
    encoder = load_text_encoder(ModelSpec("clip", HUB_ID, dtype="float32", cache_dir=tmp_path / "cache"))
    expected = load_text_encoder(ModelSpec("clip", folder, dtype="float32")).encode_text(["a daisy"])
    np.testing.assert_array_equal(encoder.encode_text(["a daisy"]), expected)


def test_a_tilde_is_the_home_of_the_user(
    tmp_path: Path, nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cached(tmp_path / "cache", HUB_ID, files_in(tiny_vision.write_convnext(tmp_path / "written")))
    monkeypatch.setenv("HOME", str(tmp_path))
    spec = ModelSpec("image-classifier", HUB_ID, cache_dir=Path("~/cache"))
    assert loading.open_model("classifier", spec).names == tiny_vision.CLASSES


def test_torchvisions_own_file_is_kept_in_the_cache_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = FasterRCNN_ResNet50_FPN_Weights.COCO_V1
    spec = ModelSpec("faster-rcnn", cache_dir=tmp_path)
    name = published.url.rpartition("/")[2]
    with pytest.raises(ModelUnavailableError, match=f"is not on this machine .{tmp_path}/{name}"):
        loading.open_model("detector", spec)
    (tmp_path / name).write_bytes(b"there")
    asked: list[object] = []
    state = tiny_vision.faster_rcnn_state(len(published.meta["categories"]))

    def load(url: str, model_dir: str, **options: object) -> object:
        asked.append(model_dir)
        return state

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", load)
    loading.reset()
    loading.open_model("detector", spec)
    assert asked == [str(tmp_path)]


def test_each_revision_opens_its_own_files(tmp_path: Path, nowhere: Path) -> None:
    """Of two revisions of one checkpoint, each opens its own: here they differ in their classes."""
    cache, write = tmp_path / "cache", tiny_vision.write_convnext
    for ref, commit, labels in (("main", "a" * 40, ("cat", "dog")), ("v2", "b" * 40, ("car", "bus", "tram"))):
        folder = write(tmp_path / ref, **tiny_vision.names(labels))
        write_cached(cache, HUB_ID, files_in(folder), ref, commit)
        for revision in (ref, commit):
            spec = ModelSpec("image-classifier", HUB_ID, revision, cache_dir=cache)
            assert loading.open_model("classifier", spec).names == labels
    with pytest.raises(ModelUnavailableError, match="is neither in"):
        loading.open_model("classifier", ModelSpec("image-classifier", HUB_ID, "v3", cache_dir=cache))


def test_a_spec_is_another_one_in_another_cache(tmp_path: Path) -> None:
    assert ModelSpec("fake") == ModelSpec("fake", cache_dir=None)
    assert len({ModelSpec("fake"), ModelSpec("fake", cache_dir=tmp_path)}) == 2


@pytest.mark.parametrize("ref", ["main", "v1.0"])
def test_a_reranker_from_the_hub_is_known_by_its_commit(ref: str, tmp_path: Path) -> None:
    """A branch or tag may move; answers that are remembered are those of the commit."""
    for commit in (COMMIT, "f" * 40):
        loading.reset()
        write_cached(tmp_path, HUB_ID, files_in(CHECKPOINTS / "qwen2-vl-digits"), ref, commit)
        chooser = loading.load_chooser(ModelSpec("qwen-vl", HUB_ID, revision=ref, cache_dir=tmp_path))
        assert f" {HUB_ID} {commit} " in chooser.fingerprint  # type: ignore[attr-defined]
