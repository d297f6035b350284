"""`models` against a cache laid out as the hub's own library lays it out."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

from lmm_classifier import registry
from lmm_classifier.models.published import DEFAULTS
from shell import run

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "facebook/dinov2-base"


def models(*arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    return run("models", *arguments, cwd=Path(__file__).parents[2], HF_HUB_CACHE=str(cache))


def git_id(content: bytes) -> str:
    header = f"blob {len(content)}\0".encode()
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """One checkpoint: a large file under its SHA-256, a small one under its git object id."""
    repo = tmp_path / "models--facebook--dinov2-base"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs/main").write_text(COMMIT)
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    weights, config = b"weights" * 1000, b'{"model_type": "dinov2"}'
    names = {
        "model.safetensors": (hashlib.sha256(weights).hexdigest(), weights),
        "config.json": (git_id(config), config),
    }
    for name, (digest, content) in names.items():
        (repo / "blobs" / digest).write_bytes(content)
        (snapshot / name).symlink_to(repo / "blobs" / digest)
    return tmp_path


def test_what_is_here_is_listed_with_commit_size_and_licence(cache: Path) -> None:
    lines = [
        json.loads(line) for line in models("list", "--embed", "--json", cache=cache).stdout.splitlines()
    ]
    by_id = {line["hub_id"]: line for line in lines}
    assert by_id[REPO]["commit"] == COMMIT
    assert by_id[REPO]["licence"] == "Apache-2.0"
    assert by_id[REPO]["mib"] == pytest.approx((7000 + 24) / 2**20)
    assert by_id["google/siglip-so400m-patch14-384"]["commit"] is None
    assert "rtdetr" not in models("list", "--embed", cache=cache).stdout
    assert "not on this machine" in models("list", "--detect", cache=cache).stdout


def test_each_damaged_file_is_named(cache: Path) -> None:
    result = models("verify", "--embed", cache=cache)
    assert f"{REPO}: every file is as the hub has it" in result.stdout
    assert result.returncode == 2  # the other encoders are not here
    snapshot = cache / "models--facebook--dinov2-base/snapshots" / COMMIT
    for name in ("model.safetensors", "config.json"):
        blob = (snapshot / name).resolve()
        blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    (snapshot / "gone.json").symlink_to(cache / "nowhere")
    (snapshot / "stray.json").write_text("{}")
    result = models("verify", "--embed", cache=cache)
    assert result.returncode == 1
    for name in ("model.safetensors is damaged", "config.json is damaged", "points to nothing", "no digest"):
        assert name in result.stderr


def test_settings_say_which_and_shipped_ones_need_no_fetching(cache: Path, tmp_path: Path) -> None:
    assert models("list", "-c", "config/demo.yaml", cache=cache).stdout == ""
    listed = models("list", "-c", "config/default.yaml", cache=cache).stdout
    assert "google/siglip-so400m-patch14-384" in listed
    assert "Qwen/Qwen2-VL-7B-Instruct" in listed
    assert models("fetch", "-c", "config/demo.yaml", cache=cache).returncode == 0
    result = models("list", "--embed", "-c", "config/demo.yaml", cache=cache)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)


def test_offline_a_missing_checkpoint_is_one_line(cache: Path) -> None:
    result = models("fetch", "--detect", cache=cache)
    assert result.returncode == 1
    assert result.stderr.startswith("error: model 'PekingU/rtdetr_v2_r18vd' (main) cannot be fetched")
    assert result.stderr.count("\n") == 1
    assert f"hub: {cache}" in models("where", cache=cache).stdout


def test_every_default_belongs_to_a_registered_family() -> None:
    families = {name for kind in registry.BUILTINS for name in registry.names(kind)}
    assert {default.family for default in DEFAULTS} <= families
    assert len({default.family for default in DEFAULTS}) == len(DEFAULTS)
