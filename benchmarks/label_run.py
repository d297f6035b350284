"""What a labelling run costs beside building an index of the same photos, and what kills cost it.

    python benchmarks/label_run.py rate      # rates of both, one command each, and the memory of the run
    python benchmarks/label_run.py killed    # killed at 20 random times, compared with a run that was not

The photos are the demo's digits, 64 to 512 px, with noise; the model is the shipped tiny SigLIP,
the index that of `lmm-classifier demo`, calibrated; the reranker is off.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from lmm_classifier.checkpoints.digits import load_digit_scans

SIDES = (64, 128, 256, 384, 512)  # px
POINTS = 20
COMMAND = (sys.executable, "-m", "lmm_classifier")


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("rate", "killed"))
    parser.add_argument("--photos", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_photos(root / "photos/all", options.photos)
        ended("demo", "--json", cwd=root)
        text = (
            (root / "indexes/demo/config.yaml").read_text("utf-8").replace("enabled: true", "enabled: false")
        )
        (root / "indexes/demo/config.yaml").write_text(text, "utf-8")
        if options.what == "rate":
            compare(root, options.rounds)
        else:
            kill(root)


def write_photos(folder: Path, n: int) -> None:
    """Write n JPEGs of digits."""
    folder.mkdir(parents=True)
    scans, noise = load_digit_scans(), np.random.default_rng(0)
    for i in range(n):
        side = SIDES[i % len(SIDES)]
        digit = Image.fromarray(scans[i % len(scans)].pixels).resize((side, side), Image.Resampling.BICUBIC)
        pixels = np.asarray(digit) + noise.normal(0, 8, (side, side))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i:06}.jpg", quality=90)


def compare(root: Path, rounds: int) -> None:
    """Build an index and label the same photos, in turns."""
    walls: dict[str, list[float]] = {"build": [], "label": []}
    rates: dict[str, list[float]] = {"build": [], "label": []}
    for i in range(rounds):
        settings = ("-c", "indexes/demo/config.yaml")
        encoder = ("--encoder", "siglip=shipped:siglip-digits", "--batch-size", "64")
        for name, command in (
            ("build", ("index", "build", "photos", "-o", f"built{i}", *encoder, "--json-progress")),
            ("label", ("label", "run", "photos", *settings, "-o", f"run{i}", "--json-progress")),
        ):  # fmt: skip
            began = time.perf_counter()
            resident, said = watched(command, root)
            walls[name].append(time.perf_counter() - began)
            stage = "indexing" if name == "build" else "labelling"
            rates[name].append([line["per_second"] for line in said if line["stage"] == stage][-1])
            quarters = [resident[len(resident) * q // 4] for q in (1, 2, 3)]
            print(f"{name}: {walls[name][-1]:.1f} s, {rates[name][-1]:.0f} photos/s, resident MiB {quarters}")
    ratio = [a / b for a, b in zip(rates["label"], rates["build"], strict=True)]
    whole = [b / a for a, b in zip(walls["label"], walls["build"], strict=True)]
    for name, found in (("rate of labelling against building", ratio), ("whole commands", whole)):
        print(f"{name}: median {median(found):.2f} ({min(found):.2f} to {max(found):.2f})")


def kill(root: Path) -> None:
    """Kill a run at random times, go on until it is done, and compare."""
    command = ("label", "run", "photos", "-c", "indexes/demo/config.yaml", "-o")
    began = time.perf_counter()
    ended(*command, "whole", cwd=root)
    took = time.perf_counter() - began
    seeded = random.Random(0)  # noqa: S311
    for _ in range(POINTS):
        child = subprocess.Popen((*COMMAND, *command, "killed"), cwd=root)  # noqa: S603
        time.sleep(seeded.uniform(3, 3 + took / 5))  # all together, some four times what is to be done
        child.send_signal(signal.SIGKILL)
        child.wait()
        shards = root / "killed/shards"
        rows = (
            sum(pq.read_metadata(path).num_rows for path in shards.glob("*.parquet"))
            if shards.exists()
            else 0
        )
        print(f"killed; {rows} photos on the disk")
    ended(*command, "killed", cwd=root)
    tables = [
        pq.read_table(root / name / "results.parquet").drop_columns("timings") for name in ("whole", "killed")
    ]
    print(f"{len(tables[0])} rows; the same but for the times: {tables[0].equals(tables[1])}")


def watched(command: tuple[str, ...], cwd: Path) -> tuple[list[int], list[dict[str, object]]]:
    """Run a command; its resident MiB twice a second, and what it said of its progress."""
    child = subprocess.Popen(  # noqa: S603
        (*COMMAND, *command), cwd=cwd, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    resident, said = [], []
    for line in child.stderr or ():
        if line.startswith("{"):
            said.append(json.loads(line))
            if said[-1]["stage"] in {"indexing", "labelling"}:
                pages = int(Path(f"/proc/{child.pid}/statm").read_text("ascii").split()[1])
                resident.append(pages * os.sysconf("SC_PAGE_SIZE") // 2**20)
    if child.wait():
        sys.exit(f"{' '.join(command)} failed: {said[-3:]}")
    return resident, said


def ended(*command: str, cwd: Path) -> None:
    """Run a command to its end."""
    subprocess.run((*COMMAND, *command), cwd=cwd, stdout=subprocess.DEVNULL, check=True)  # noqa: S603


if __name__ == "__main__":
    main()
