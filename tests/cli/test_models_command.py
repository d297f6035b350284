"""`models` against a cache laid out as the hub's own library does it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hub_cache import COMMIT, files_in, write_cached
from lmm_classifier import registry
from lmm_classifier.models.runtime.default_checkpoints import TASKS, default_checkpoints
from mini_hub import COMMIT as SERVED
from mini_hub import MiniHub, serving
from shell import run
from synthetic import write_corpus

CHECKPOINTS = Path(registry.__file__).parent / "checkpoints"
REPO = "facebook/dinov2-base"
CONVNEXT = "facebook/convnext-tiny-224"
FILES = {"model.safetensors": b"weights" * 1000, "config.json": b'{"model_type": "dinov2"}'}


def models(*arguments: str | Path, cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    return run("models", *arguments, cwd=root, **{"HF_HUB_CACHE": str(cache), **environment})


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """One checkpoint, of no use to any model: nothing here may be loaded."""
    write_cached(tmp_path, REPO, FILES)
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


def test_settings_say_which_models_and_shipped_ones_need_no_fetching(cache: Path, tmp_path: Path) -> None:
    assert models("list", "-c", "config/demo.yaml", cache=cache).stdout == ""
    listed = models("list", "-c", "config/default.yaml", cache=cache).stdout
    assert "google/siglip-so400m-patch14-384" in listed
    assert "Qwen/Qwen2-VL-7B-Instruct" in listed
    assert models("fetch", "-c", "config/demo.yaml", cache=cache).returncode == 0
    result = models("list", "--embed", "-c", "config/demo.yaml", cache=cache)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)


def test_offline_a_missing_checkpoint_is_one_line_of_error(cache: Path) -> None:
    result = models("fetch", "--detect", cache=cache)
    assert result.returncode == 1
    assert result.stderr.startswith("error: model 'PekingU/rtdetr_v2_r18vd' (main) cannot be fetched")
    assert result.stderr.count("\n") == 1
    assert f"hub: {cache}" in models("where", cache=cache).stdout


def test_default_weights_have_a_licence_and_one_family() -> None:
    families = [family for _, family, _ in default_checkpoints()]
    assert len(set(families)) == len(families) == 10
    assert all(entry.licence for _, _, entry in default_checkpoints())


class TestCacheDir:
    """One folder for all models at once, in settings or on the command line."""

    SETTINGS = (
        "cache_dir: kept\npipeline:\n- label: {model: {family: image-classifier}}\n"
        "- embed: {encoder: {family: dinov2, cache_dir: mine}}\n"
    )

    @pytest.fixture
    def settings(self, tmp_path: Path) -> Path:
        (tmp_path / "s.yaml").write_text(self.SETTINGS)
        write_cached(tmp_path / "kept", CONVNEXT, FILES)
        return tmp_path / "s.yaml"

    def test_the_commands_look_in_the_folder_they_are_given(self, cache: Path, tmp_path: Path) -> None:
        empty = tmp_path / "empty"
        option = ("--cache-dir", str(cache))
        (tmp_path / "s.yaml").write_text("pipeline: [embed: {encoder: {family: dinov2}}]")
        for command in ("fetch", "verify"):
            result = models(command, *option, "-c", tmp_path / "s.yaml", cache=empty)
            assert (result.returncode, result.stdout.startswith(f"{REPO}: ")) == (0, True)
        listed = models("list", "--embed", "--json", *option, cache=empty).stdout.splitlines()
        found = {line["hub_id"]: line for line in map(json.loads, listed)}[REPO]
        assert (found["commit"], found["cache_dir"]) == (COMMIT, str(cache))
        assert models("verify", "-c", tmp_path / "s.yaml", cache=empty).returncode == 2
        assert models("where", *option, cache=empty).stdout.startswith(f"hub: {cache}\n")

    def test_a_folder_named_in_settings_lies_beside_their_file(self, settings: Path, tmp_path: Path) -> None:
        lines = models("list", "--json", "-c", settings, cache=tmp_path / "empty").stdout.splitlines()
        found = {line["hub_id"]: line for line in map(json.loads, lines)}
        assert found[CONVNEXT]["commit"] == COMMIT
        assert found[CONVNEXT]["cache_dir"] == str(tmp_path / "kept")
        assert (found[REPO]["commit"], found[REPO]["cache_dir"]) == (None, str(tmp_path / "mine"))
        where = models("where", "-c", settings, cache=tmp_path / "empty").stdout
        assert where.startswith(f"hub: {tmp_path / 'kept'}\nhub: {tmp_path / 'mine'}\nshipped: ")
        other = models("list", "-c", settings, "--cache-dir", tmp_path / "other", cache=tmp_path / "empty")
        assert other.stdout.count("not on this machine") == 2

    def test_where_none_is_given_the_hubs_own_settings_rule(self, tmp_path: Path) -> None:
        for name, folder in (("HF_HUB_CACHE", tmp_path / "a"), ("HF_HOME", tmp_path / "b")):
            environment = {"HF_HUB_CACHE": "", "HF_HOME": ""} | {name: str(folder)}
            told = run("models", "where", cwd=tmp_path, **{k: v for k, v in environment.items() if v})
            expected = folder if name == "HF_HUB_CACHE" else folder / "hub"
            assert told.stdout.startswith(f"hub: {expected} (set HF_HUB_CACHE or HF_HOME to move it)")


class TestFetch:
    """From a hub on this machine."""

    def online(self, hub: MiniHub, *arguments: str | Path, cache: Path) -> subprocess.CompletedProcess[str]:
        environment = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_ours"}
        return models("fetch", *arguments, cache=cache, **environment)

    def test_a_default_is_downloaded_and_not_loaded(self, tmp_path: Path) -> None:
        """What is downloaded is no model at all; pickles and other frameworks' files are left there."""
        with serving({CONVNEXT: {**FILES, "pytorch_model.bin": b"pickle", "tf_model.h5": b"tf"}}) as hub:
            result = self.online(hub, "--classify", cache=tmp_path)
            assert result.returncode == 0, result.stderr
            folder = tmp_path / "models--facebook--convnext-tiny-224/snapshots" / SERVED
            assert result.stdout == f"{CONVNEXT}: revision {SERVED} in {folder}\n"
            assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
            assert not list(tmp_path.rglob("*.incomplete"))
            tokens = {headers.get("authorization") for _, path, headers in hub.asked if "/resolve/" in path}
            assert tokens == {"Bearer hf_ours"}
            assert all(SERVED in path for _, path, _ in hub.asked if "/resolve/" in path)  # pinned, not main
            seen = len(hub.asked)
            assert self.online(hub, "--classify", cache=tmp_path).returncode == 0
            assert not [a for a in hub.asked[seen:] if a[0] == "GET" and "/resolve/" in a[1]]
        verified = models("verify", "--classify", cache=tmp_path)
        assert (verified.returncode, "every file is as the hub has it" in verified.stdout) == (0, True)

    def test_settings_override_the_default(self, tmp_path: Path) -> None:
        (tmp_path / "s.yaml").write_text(
            f"cache_dir: kept\npipeline: [label: {{model: {{family: image-classifier, weights: a/b, "
            f"revision: {SERVED}}}}}]"
        )
        with serving({"a/b": FILES}) as hub:
            result = self.online(hub, "-c", tmp_path / "s.yaml", cache=tmp_path / "unused")
        assert result.returncode == 0, result.stderr
        assert str(tmp_path / "kept/models--a--b/snapshots" / SERVED) in result.stdout
        assert not (tmp_path / "unused").exists()

    def test_a_broken_download_goes_on_where_it_broke_off(self, tmp_path: Path) -> None:
        weights = bytes(range(256)) * 80_000  # 20 MB; the library writes 10 MiB at a time
        with serving({CONVNEXT: {"model.safetensors": weights}}, cut=15_000_000) as hub:
            result = self.online(hub, "--classify", cache=tmp_path)
            ranges = [headers.get("Range") for method, _, headers in hub.asked if method == "GET"]
        assert result.returncode == 0, result.stderr
        assert f"bytes={10 * 2**20}-" in ranges
        [file] = tmp_path.rglob("snapshots/*/model.safetensors")
        assert file.read_bytes() == weights

    @pytest.mark.parametrize("command", [("models", "fetch"), ("index", "build")], ids=" ".join)
    def test_a_killed_download_is_seen_and_gone_on_with(
        self, command: tuple[str, ...], tmp_path: Path
    ) -> None:
        files = files_in(CHECKPOINTS / "siglip-digits")
        (tmp_path / "s.yaml").write_text("pipeline: [embed: {encoder: {family: siglip, weights: a/b}}]")
        write_corpus(tmp_path / "photos")
        options = {
            "fetch": ("-c", tmp_path / "s.yaml"),
            "build": (tmp_path / "photos", "-o", tmp_path / "index", "--encoder", "siglip=a/b"),
        }[command[1]]
        cache = tmp_path / "cache"
        settings = ("-c", tmp_path / "s.yaml")
        with serving({"a/b": files}, cut=len(files["model.safetensors"]) // 2) as hub:
            hub.stalls = True
            environment = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(cache)}
            running = subprocess.Popen(
                [sys.executable, "-m", "lmm_classifier", *command, *options],
                env={**os.environ, **environment},
                stderr=subprocess.PIPE,
            )
            assert hub.stalled.wait(60)
            running.kill()
            running.communicate()
            hub.released.set()
            verified = models("verify", *settings, cache=cache)
            assert (verified.returncode, verified.stderr) == (2, "")
            assert verified.stdout.startswith("a/b: incomplete: 1 file is missing, such as ")
            assert "incomplete" in models("list", *settings, cache=cache).stdout
            [listed] = models("list", *settings, "--json", cache=cache).stdout.splitlines()
            assert len(json.loads(listed)["missing"]) == 1
            assert self.online(hub, *settings, cache=cache).returncode == 0
        verified = models("verify", *settings, cache=cache)
        assert (verified.returncode, verified.stdout) == (0, "a/b: every file is as the hub has it\n")

    def test_what_the_hub_refuses_is_one_line_of_error_and_leaves_nothing(self, tmp_path: Path) -> None:
        with serving({"some/other": FILES}) as hub:
            result = self.online(hub, "--detect", cache=tmp_path)
        assert (result.returncode, result.stderr.count("\n")) == (1, 1)
        assert result.stderr.startswith(
            "error: model 'PekingU/rtdetr_v2_r18vd' (main) cannot be fetched: 404"
        )
        assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("weights", ["a/..", "../a", "a b/c", "a/b c", "-a/b"])
def test_what_is_no_repository_id_is_refused_and_nothing_fetched(weights: str, tmp_path: Path) -> None:
    """Refused by name even where a hub answers; a path is the user's own folder, and nothing is fetched."""
    model = {"family": "image-classifier", "weights": weights}
    (tmp_path / "s.yaml").write_text(json.dumps({"pipeline": [{"label": {"model": model}}]}))
    with serving({weights: FILES}) as hub:
        environment = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url}
        result = models("fetch", "-c", tmp_path / "s.yaml", cache=tmp_path / "cache", **environment)
        assert [path for _, path, _ in hub.asked if weights in path] == []
    if not weights.startswith("."):
        assert (result.returncode, result.stderr.count("\n")) == (1, 1)
        assert f"model {weights!r} (main) cannot be fetched: Repo id must use" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["s.yaml"]


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_a_flag_that_lists_its_defaults(task: str, tmp_path: Path) -> None:
    lines = models("list", f"--{task}", "--json", cache=tmp_path).stdout.splitlines()
    expected = [family for of, family, _ in default_checkpoints() if of == task]
    assert [json.loads(line)["family"] for line in lines] == expected
    assert expected


def test_without_a_flag_all_are_listed_and_an_unknown_flag_is_refused(tmp_path: Path) -> None:
    lines = models("list", "--json", cache=tmp_path).stdout.splitlines()
    assert [json.loads(line)["family"] for line in lines] == [
        family for _, family, _ in default_checkpoints()
    ]
    for command in ("fetch", "list", "verify"):
        result = models(command, "--clasify", cache=tmp_path)
        assert (result.returncode, result.stderr.count("\n")) == (1, 1)
        assert "--clasify" in result.stderr


def test_no_command_imports_a_model_library(cache: Path) -> None:
    for command in ("fetch", "verify", "list"):
        code = (
            "import sys\nfrom lmm_classifier.cli import main\n"
            f"try: main(['models', '{command}', '-c', 'config/demo.yaml'])\n"
            "except SystemExit: sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
        )
        root = Path(__file__).parents[2]
        assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
