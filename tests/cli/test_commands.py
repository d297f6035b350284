"""The commands as a shell runs them: what is printed where, and the exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clock import wait_until
from shell import run
from synthetic import COLOURS, picture, write_corpus


def failed_in_one_line(result: subprocess.CompletedProcess[str]) -> str:
    """Exit code 1, nothing on stdout, and exactly one line on stderr that is no traceback."""
    assert result.returncode == 1, (result.stdout, result.stderr)
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus, its index, and settings."""
    folder = tmp_path_factory.mktemp("cli")
    write_corpus(folder / "corpus")
    result = run("index", "build", "corpus", "--output", "index", "--encoder", "fake", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "18 images of 3 labels" in result.stdout
    (folder / "settings.yaml").write_text(
        "encoder: {family: fake}\n"
        "retrieval: {index_path: index, confidence_threshold: 0.5}\n"
        "rerank: {family: fake}\n"
    )
    for i, (label, colour) in enumerate(COLOURS.items()):
        (folder / "photos" / "deep").mkdir(parents=True, exist_ok=True)
        picture(colour, seed=500 + i).save(folder / "photos" / ("deep" if i else "") / f"{label}.PNG")
    return folder


def test_classify_writes_json_lines_to_a_pipe(work: Path) -> None:
    result = run("classify", "photos", "photos/blue.PNG", "--config", "settings.yaml", cwd=work)
    assert result.returncode == 0, result.stderr
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(Path(a["source"]).name, a["label"]) for a in answers] == [
        ("blue.PNG", "blue"),
        ("green.PNG", "green"),
        ("red.PNG", "red"),
        ("blue.PNG", "blue"),
    ]
    assert {
        "score",
        "used_reranker",
        "stage",
        "reason",
        "candidates",
        "neighbours",
        "thresholds",
        "timings",
    } <= answers[0].keys()


def test_classify_shows_people_a_table(work: Path) -> None:
    command = f"{sys.executable} -m lmm_classifier classify photos -c settings.yaml"
    result = subprocess.run(
        ["script", "-qec", command, "/dev/null"],
        cwd=work,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "160"},
    )
    assert result.returncode == 0
    assert "photos/deep/red.PNG" in result.stdout
    assert "confidence_threshold" in result.stdout


def test_skipped_files_give_exit_code_2_and_a_line_each(work: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    result = run("classify", tmp_path / "bad.jpg", "photos/blue.PNG", "-c", "settings.yaml", cwd=work)
    assert result.returncode == 2
    bad, good = map(json.loads, result.stdout.splitlines())
    assert (bad["code"], good["label"]) == ("corrupt", "blue")
    assert "1 files were skipped" in result.stderr


def test_a_degraded_answer_gives_exit_code_2(work: Path, tmp_path: Path) -> None:
    text = (
        f"encoder: {{family: fake}}\nretrieval: {{index_path: {work / 'index'}, confidence_threshold: 1}}\n"
        "rerank: {family: fake, model_name: fails}\n"
    )
    (tmp_path / "s.yaml").write_text(text)
    result = run("classify", "photos/blue.PNG", "-c", tmp_path / "s.yaml", cwd=work)
    assert result.returncode == 2
    assert json.loads(result.stdout)["degraded"]
    assert "degraded" in result.stderr


def test_nothing_answered_is_a_failure(work: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no photo" in failed_in_one_line(
        run("classify", tmp_path / "empty", "-c", "settings.yaml", cwd=work)
    )
    missing = run("classify", "nowhere.jpg", "-c", "settings.yaml", cwd=work)
    assert missing.returncode == 1
    assert json.loads(missing.stdout)["code"] == "not_found"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["classify", "photos", "-c", "nowhere.yaml"], "nowhere.yaml: cannot be read: No such file"),
        (["classify", "photos"], "Missing option '--config'"),
        (["index", "build", "nowhere", "-o", "x"], "nowhere"),
        (["index", "build", "corpus", "-o", "x", "--encoder", "sigilp"], "did you mean 'siglip'?"),
        (["index", "build", "corpus", "-o", "x", "--encoder", "fake", "--device", "gpu"], "device"),
        (
            ["index", "build", "corpus", "-o", "x", "--encoder", "siglip"],
            "neither on this machine nor reachable",
        ),
        (
            ["index", "build", "corpus", "-o", "x", "--encoder", "siglip", "--weights", "./no"],
            "does not exist",
        ),
        (["index", "build", "corpus", "-o", "photos", "--encoder", "fake"], "is not an index folder"),
        (["index", "info", "photos"], "photos is not an index"),
        (["config", "check", "corpus"], "Is a directory"),
        (["demo", "--output", "settings.yaml"], "settings.yaml"),
        (["demo", "--output", "/dev/null/x"], "/dev/null/x"),
        (["index", "build", "corpus", "-o", "corpus/index", "--encoder", "fake"], "lies inside the corpus"),
        (["index", "bulid"], "bulid"),
        (["classify", "x", "--config", "settings.yaml", "--jsn"], "--jsn"),
    ],
)
def test_wrong_input_gets_one_line_and_writes_nothing(work: Path, arguments: list[str], message: str) -> None:
    before = sorted(work.rglob("*"))
    assert message in failed_in_one_line(run(*arguments, cwd=work))
    assert sorted(work.rglob("*")) == before


def test_empty_and_one_class_corpora_have_their_own_outcomes(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    failed_in_one_line(run("index", "build", "empty", "-o", "x", "--encoder", "fake", cwd=tmp_path))
    (tmp_path / "one/only").mkdir(parents=True)
    (tmp_path / "one/nothing").mkdir()
    picture(COLOURS["red"]).save(tmp_path / "one/only/a.png")
    result = run("index", "build", "one", "-o", "x", "--encoder", "fake", cwd=tmp_path)
    assert result.returncode == 0
    assert "the only label is 'only'" in result.stderr
    assert "label 'nothing' has no images" in result.stderr


def test_skips_in_a_build_give_exit_code_2_and_are_listed(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", per_label=2)
    (corpus / "red/x.jpg").write_bytes(b"no photo")
    result = run(
        "index", "build", "corpus", "-o", "index", "--encoder", "fake", "--max-bad-ratio", "0.5", cwd=tmp_path
    )
    assert result.returncode == 2
    assert "skipped: red/x.jpg" in result.stderr
    info = run("index", "info", "index", "--json", cwd=tmp_path)
    assert json.loads(info.stdout)["skipped"][0]["path"] == "red/x.jpg"
    assert json.loads(info.stdout)["labels"] == {"blue": 2, "green": 2, "red": 2}
    assert "6 images, 3 labels, every file verified" in run("index", "info", "index", cwd=tmp_path).stdout


def test_a_damaged_index_is_named(work: Path, tmp_path: Path) -> None:
    subprocess.run(["cp", "-r", work / "index", tmp_path], check=True)
    shard = tmp_path / "index/shards/000000.npy"
    shard.write_bytes(shard.read_bytes()[:-1])
    (tmp_path / "s.yaml").write_text("encoder: {family: fake}\nretrieval: {index_path: index}\n")
    for arguments in (
        ["index", "info", "index"],
        ["config", "check", "s.yaml"],
        ["classify", "s.yaml", "-c", "s.yaml"],
    ):
        assert "shards/000000.npy" in failed_in_one_line(run(*arguments, cwd=tmp_path))


def test_another_encoders_index_is_refused(work: Path, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(
        f"encoder: {{family: descriptor}}\nretrieval: {{index_path: {work / 'index'}}}\n"
    )
    message = failed_in_one_line(run("classify", "photos", "-c", tmp_path / "s.yaml", cwd=work))
    assert "was built by encoder fake" in message


def test_config_check_prints_the_settings_in_force(work: Path) -> None:
    result = run("config", "check", "settings.yaml", cwd=work)
    assert result.returncode == 0
    assert "embed -> retrieve -> vote -> open_set -> rerank" in result.stdout
    assert "top_k: 10" in result.stdout
    (work / "odd.yaml").write_text(
        "labels: [red, mauve]\nencoder: {family: fake}\nretrieval: {index_path: index}\n"
    )
    result = run("config", "check", "odd.yaml", cwd=work)
    assert result.returncode == 2
    assert "'mauve' has no image in the index, nor a text prior: it is never answered" in result.stderr
    (work / "odd.yaml").write_text(
        "labels: [red, mauve]\nencoder: {family: fake}\nretrieval: {index_path: index, text_weight: 0.5}\n"
    )
    result = run("config", "check", "odd.yaml", cwd=work)
    assert (result.returncode, result.stderr) == (0, "")
    assert "vote -> text_prior -> open_set" in result.stdout


def test_the_documented_entry_point_builds_an_npz(work: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "lmm_classifier.index_builder",
        "corpus",
        "--output",
        "i.npz",
        "--batch-size",
        "4",
    ]
    result = subprocess.run(
        [*command, "--encoder", "fake"], cwd=work, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "18 images" in run("index", "info", "i.npz", cwd=work).stdout


def test_an_index_is_changed_checked_and_carried_by_commands(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", per_label=12)
    (tmp_path / "more/yellow").mkdir(parents=True)
    picture((240, 230, 30), seed=5).save(tmp_path / "more/yellow/a.png")
    built = run("index", "build", "corpus", "-o", "i", "--encoder", "fake", "--encoder", "descriptor",
                "--json-progress", "--factory", "HNSW8", "--max-bad-ratio", "0", cwd=tmp_path)  # fmt: skip
    assert built.returncode == 0, built.stderr
    lines = [json.loads(line) for line in built.stderr.splitlines()]
    ended = {"stage": "indexing", "seen": 36, "total": 36, "skipped": 0}.items()
    assert any(ended <= line.items() for line in lines)
    assert "HNSW8" in lines[-1]["stage"]
    assert (
        "37 images of 4 labels, 1 of them encoded now"
        in run("index", "add", "i", "more", cwd=tmp_path).stdout
    )
    removed = run("index", "remove", "i", "--label", "red", "--path", "blue/0.png", cwd=tmp_path)
    assert "24 images of 3 labels, 0 of them encoded now, 13 removed" in removed.stdout
    failed_in_one_line(run("index", "remove", "i", "--label", "red", cwd=tmp_path))
    failed_in_one_line(run("index", "remove", "i", cwd=tmp_path))
    failed_in_one_line(run("index", "export", "i", "--npz", "x.npz", cwd=tmp_path))
    assert run("index", "export", "i", "--npz", "x.npz", "--encoder", "fake", cwd=tmp_path).returncode == 0
    assert "24 images" in run("index", "import", "x.npz", "-o", "j", cwd=tmp_path).stdout
    assert "all as they were written" in run("index", "verify", "j", cwd=tmp_path).stdout
    info = json.loads(run("index", "info", "i", "--json", cwd=tmp_path).stdout)
    assert [space["name"] for space in info["encoders"]] == ["fake", "descriptor"]
    shard = tmp_path / "i/shards/000000.1.npy"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert "000000.1.npy" in failed_in_one_line(run("index", "verify", "i", cwd=tmp_path))


@pytest.mark.parametrize(
    "wrong",
    [
        ["--encoder", "fake", "--encoder", "fake"],
        ["--encoder", "fake", "--encoder", "onnx", "--weights", "./x.onnx"],
        ["--encoder", "fake=a", "--weights", "b"],
        ["--encoder", "fake", "--factory", "IVF9,Nonsense"],
        ["--encoder", "fake", "--encoder", "descriptor", "-o", "x.npz"],
    ],
)
def test_encoders_that_contradict_each_other(tmp_path: Path, wrong: list[str]) -> None:
    write_corpus(tmp_path / "corpus", per_label=10)
    failed_in_one_line(run("index", "build", "corpus", "-o", "i", *wrong, cwd=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_hostile_names_reach_the_terminal_as_text(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", per_label=2)
    (corpus / "red/0.png").rename(corpus / "red" / os.fsdecode(b"a\x1b[31m\xff\n[bold].png"))
    (corpus / "red" / os.fsdecode(b"\xff\x1b]0;x.jpg")).write_bytes(b"no photo")
    result = run(
        "index", "build", "corpus", "-o", "index", "--encoder", "fake", "--max-bad-ratio", "0.5", cwd=tmp_path
    )
    assert result.returncode == 2
    assert "\x1b" not in result.stdout + result.stderr
    (tmp_path / "s.yaml").write_text("encoder: {family: fake}\nretrieval: {index_path: index}\n")
    answers = run("classify", "corpus", "-c", "s.yaml", cwd=tmp_path)
    assert "\x1b" not in answers.stdout + answers.stderr
    assert len(answers.stdout.splitlines()) == 7


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_build_and_leaves_nothing(tmp_path: Path, sent: signal.Signals, code: int) -> None:
    write_corpus(tmp_path / "corpus", per_label=400)
    command = [sys.executable, "-m", "lmm_classifier", "index", "build", "corpus", "-o", "out/index"]
    process = subprocess.Popen(
        [*command, "--encoder", "descriptor"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts the tests in the background has told them to ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_until(lambda: any(tmp_path.glob("out/.index.*")))
    process.send_signal(sent)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    assert list((tmp_path / "out").iterdir()) == []


def test_a_reader_that_leaves_early_is_no_error(work: Path) -> None:
    command = f"{sys.executable} -m lmm_classifier classify {'photos ' * 200} -c settings.yaml | head -n 1"
    result = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=work, capture_output=True, text=True, check=False
    )
    assert json.loads(result.stdout)["label"] == "blue"
    assert "Traceback" not in result.stderr
    assert "Exception" not in result.stderr


def test_the_collector_seldom_goes_through_everything(work: Path) -> None:
    """Of its own accord Python does so eight times before a photo is seen."""
    script = (
        "import atexit, gc; counts = [0, 0, 0]\n"
        "def note(phase, about): counts[about['generation']] += phase == 'stop'\n"
        "gc.callbacks.append(note); atexit.register(lambda: print(counts))\n"
        "from lmm_classifier.cli import main\n"
        "main('index build corpus --output collected --encoder siglip=shipped:siglip-digits'.split())"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=work, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    said, counts = result.stdout.splitlines()
    assert "18 images of 3 labels" in said
    _, middle, full = json.loads(counts)
    assert middle > 20
    assert full <= 2


def test_version_and_help(tmp_path: Path) -> None:
    assert run("--version", cwd=tmp_path).stdout.strip() == "0.1.0"
    text = run("--help", cwd=tmp_path).stdout
    for command in ("demo", "index", "classify", "evaluate", "config"):
        assert command in text
    assert "Exit codes: 0 all good" in " ".join(text.split())
    assert run(cwd=tmp_path).stdout == text
    assert "build" in run("index", cwd=tmp_path).stdout


def test_a_full_disk_under_the_answers_is_one_line(work: Path) -> None:
    command = f"{sys.executable} -m lmm_classifier classify photos -c settings.yaml > /dev/full"
    result = subprocess.run(["bash", "-c", command], cwd=work, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr == "error: output: No space left on device\n"
