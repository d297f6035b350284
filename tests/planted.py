"""A labelled corpus with faults planted into it, and which they are."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Planted:
    """Paths relative to the corpus; `mislabelled`: each that lies under a wrong label, and the right one."""

    duplicates: list[set[str]] = field(default_factory=list)
    conflicts: list[set[str]] = field(default_factory=list)
    near: list[set[str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    mislabelled: dict[str, str] = field(default_factory=dict)


def plant_faults(source: Path, root: Path, seed: int = 0) -> Planted:
    """Copy root/<label>/*.jpg and plant 20 duplicates, 10 conflicts, 15 near-duplicates, 30 wrong labels.

    Near-duplicates are saved at 70, 80 or 90 % of the size as JPEG of quality 70, 80 or 90.
    """
    photos = sorted(source.glob("*/*.jpg"))
    labels = sorted({photo.parent.name for photo in photos})
    for photo in photos:
        (root / photo.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(photo, root / photo.relative_to(source))
    generator, planted = np.random.default_rng(seed), Planted()
    order = [photos[i].relative_to(source) for i in generator.permutation(len(photos))]
    foreign = [str(generator.choice([name for name in labels if name != p.parent.name])) for p in order]
    for path in order[:20]:
        copy = path.with_name(f"copy-{path.name}")
        shutil.copyfile(root / path, root / copy)
        planted.duplicates.append({path.as_posix(), copy.as_posix()})
    for path, label in zip(order[20:30], foreign[20:30], strict=True):
        copy = Path(label, f"copy-{path.name}")
        shutil.copyfile(root / path, root / copy)
        planted.conflicts.append({path.as_posix(), copy.as_posix()})
        planted.mislabelled[copy.as_posix()] = path.parent.name
    for i, (path, label) in enumerate(zip(order[30:45], foreign[30:45], strict=True)):
        near, image = Path(label, f"near-{path.name}"), Image.open(root / path).convert("RGB")
        smaller = image.resize([round((0.7, 0.8, 0.9)[i % 3] * side) for side in image.size])
        smaller.save(root / near, quality=(70, 80, 90)[i // 5])
        planted.near.append({path.as_posix(), near.as_posix()})
        planted.mislabelled[near.as_posix()] = path.parent.name
    for path, label in zip(order[45:75], foreign[45:75], strict=True):
        (root / path).rename(root / label / f"wrong-{path.name}")
        planted.wrong.append(f"{label}/wrong-{path.name}")
        planted.mislabelled[f"{label}/wrong-{path.name}"] = path.parent.name
    return planted
