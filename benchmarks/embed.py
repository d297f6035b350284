"""What decoding, the model and memory cost while an index is built, as ratios from one run.

    python benchmarks/embed.py [--photos 2000] [--large 100] [--quick]

Writes JPEGs of quality 90 into a temporary folder (soft shapes, sharp edges, grain): `--photos` of
500 x 375 px, `--large` of 4000 x 3000 px (12 megapixels), and for the memory 20,000 of 64 x 48 px, a tenth of
which are indexed alone. The model is a SigLIP tower as large as ViT-B/32 (hidden 768, 12 layers, 12 heads,
patches of 32 px, 224 px) with random weights. Two threads decode, and torch has two. Nothing here fails
because of a time; `--quick` does everything with a tenth of the images.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

from lmm_classifier.api.build_index import build_index
from lmm_classifier.corpus.images import open_image
from lmm_classifier.models.base import Encoder, input_size_of
from lmm_classifier.models.loading import load_encoder
from lmm_classifier.models.spec import ModelSpec

THREADS = 2
BATCH = 32
ROUNDS = 5
MANY = 20_000
LABELS = 10
CHILD = (
    "import re, sys; from pathlib import Path; from lmm_classifier.api.build_index import build_index\n"
    "from lmm_classifier.models.spec import ModelSpec\n"
    "tiny = ModelSpec('siglip', 'shipped:siglip-digits')\n"
    "build_index(sys.argv[1], sys.argv[2], encoder=tiny, workers=2)\n"
    # Not getrusage: its peak counts the process that started this one, until exec.
    "print(re.search(r'VmHWM:\\s*(\\d+)', Path('/proc/self/status').read_text())[1])"
)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", type=int, default=2000)
    parser.add_argument("--large", type=int, default=100)
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    options = parser.parse_args()
    share = 10 if options.quick else 1
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for i in range(ROUNDS):
            write_photos(root / f"photos/{i}", options.photos // share // ROUNDS, (500, 375))
        write_photos(root / "large", options.large // share, (4000, 3000))
        weights = write_model(root / "model")
        print(f"{options.photos // share} photos of 500 x 375, {options.large // share} of 4000 x 3000 px")
        report_building(root, weights)
        report_decoding(sorted((root / "large").glob("*/*.jpg")), weights)
        report_dtypes(sorted((root / "photos").glob("*/*/*.jpg"))[: 2 * BATCH], weights)
        report_memory(root, MANY // share)


def report_building(root: Path, weights: str) -> None:
    """Rates of decoding alone, of the model alone and of both as an index is built, taking turns."""
    spec = ModelSpec("siglip", weights)
    encoder = load_encoder(spec)
    rounds = [building(folder, spec) for folder in sorted((root / "photos").iterdir())]
    decoding, model, both, ratio = (median(column) for column in zip(*rounds, strict=True))
    line("a  decoding alone, images/s", decoding)
    line(f"b  model alone ({encoder.contract.dtype}), images/s", model)
    line("c  build_index, images/s", both)
    line("d  c / min(a, b), median of the rounds", ratio, "0.90")


def building(folder: Path, spec: ModelSpec) -> tuple[float, float, float, float]:
    """One round: the three rates, and the last by the lesser of the others."""
    encoder = load_encoder(spec)
    paths, size = sorted(folder.glob("*/*.jpg")), input_size_of(encoder)
    decoding = rate(len(paths), lambda: decoded(paths, size))
    images = decoded(paths, size)
    encode(encoder, images[:BATCH])  # the first pass reserves memory
    model = rate(len(paths), lambda: encode(encoder, images))
    output = folder.parents[1] / f"{folder.name}-index"
    both = rate(
        len(paths), lambda: build_index(folder, output, encoder=spec, batch_size=BATCH, workers=THREADS)
    )
    return decoding, model, both, both / min(decoding, model)


def report_decoding(paths: Sequence[Path], weights: str) -> None:
    """Photos of 12 megapixels decoded at the scale the model needs, and whole."""
    size = input_size_of(load_encoder(ModelSpec("siglip", weights)))
    reduced = rate(len(paths), lambda: decoded(paths, size))
    line("e  12 megapixels: reduced / full decoding", reduced / rate(len(paths), lambda: decoded(paths)), "5")


def report_dtypes(paths: Sequence[Path], weights: str) -> None:
    """The two arithmetics in turn, so that a drift of the machine's speed hits both."""
    images = decoded(paths, 224)
    pair = [load_encoder(ModelSpec("siglip", weights, dtype=dtype)) for dtype in ("bfloat16", "float32")]
    for encoder in pair:
        encode(encoder, images)
    ratios = []
    for _ in range(ROUNDS):
        rough, exact = (rate(len(images), lambda e=encoder: encode(e, images)) for encoder in pair)
        ratios.append(rough / exact)
    automatic = load_encoder(ModelSpec("siglip", weights)).contract.dtype
    line(
        f"f  bfloat16 / float32, model alone (auto: {automatic})",
        median(ratios),
        "1.5 where auto is bfloat16",
    )


def report_memory(root: Path, many: int) -> None:
    """Peak memory of a fresh process that indexes ten times as many photos, against a tenth of them."""
    if not Path("/proc/self/status").exists():
        print("g  peak memory is measured on Linux only")
        return
    write_photos(root / "many", many, (64, 48))
    write_photos(root / "few", many // 10, (64, 48))
    peaks = []
    for name in ("many", "few"):
        command = [sys.executable, "-c", CHILD, str(root / name), str(root / f"{name}-index")]
        result = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
        peaks.append(int(result.stdout) / 1024)
    line(
        f"g  peak memory, {many} / {many // 10} photos ({peaks[0]:.0f} / {peaks[1]:.0f} MiB)",
        peaks[0] / peaks[1],
        "at most 1.15",
    )


def decoded(paths: Sequence[Path], target_size: int | None = None) -> list[Image.Image]:
    """Photos by as many threads as build an index."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(lambda path: open_image(path, target_size=target_size), paths))


def encode(encoder: Encoder, images: Sequence[Image.Image]) -> None:
    """All images, a batch at a time."""
    for start in range(0, len(images), BATCH):
        encoder.encode(images[start : start + BATCH])


def rate(n: int, work: Callable[[], object]) -> float:
    """Images per second."""
    started = time.perf_counter()
    work()
    return n / (time.perf_counter() - started)


def line(name: str, value: float, target: str = "") -> None:
    """A row of the table."""
    print(f"{name:<64} {value:>9.2f}  {'target ' + target if target else ''}", flush=True)


def write_photos(root: Path, n: int, size: tuple[int, int]) -> None:
    """Write n photos of (width, height) px below root/<label>: a soft field, rectangles, grain."""
    random = np.random.default_rng(0)
    grain = random.normal(0, 5, (size[1], size[0], 1)).astype(np.float32)
    for i in range(n):
        field = Image.fromarray(random.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        picture = field.resize(size, Image.Resampling.BICUBIC)
        for _ in range(8):
            x, y, w, h = (
                (random.random(4) * [size[0], size[1], size[0] / 3, size[1] / 3]).astype(int).tolist()
            )
            picture.paste(tuple(random.integers(0, 256, 3).tolist()), (x, y, x + w, y + h))
        pixels = np.asarray(picture, np.float32) + np.roll(grain, i, axis=1)
        path = root / f"label{i % LABELS}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def write_model(folder: Path) -> str:
    """A vision tower of the size of ViT-B/32, with its image processor."""
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        image_size=224,
        patch_size=32,
    )
    SiglipVisionModel(config).save_pretrained(folder)
    SiglipImageProcessor(size={"height": 224, "width": 224}).save_pretrained(folder)
    return str(folder)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main()
