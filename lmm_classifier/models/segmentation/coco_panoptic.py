"""The 133 categories of COCO panoptic, and labels of checkpoints that lack names."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

log = logging.getLogger(__name__)

_WIDTH = 250
"""Classes of DETR's panoptic checkpoints: COCO's ids 1 to 200 with gaps, and unused ones up to 249."""
_PLACEHOLDER = re.compile(r"LABEL_\d+")


@cache
def coco_panoptic() -> Mapping[int, tuple[str, bool]]:
    """Id -> name, and whether it is a thing (80) or stuff (53); ids 1 to 200 with gaps."""
    rows = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return {row["id"]: (row["name"], bool(row["isthing"])) for row in rows}


def class_names(id2label: Mapping[int, str], classes: int, weights: str) -> tuple[str, ...]:
    """A name for each class of a checkpoint.

    A class without a name, or with a placeholder such as LABEL_7, gets that of COCO panoptic if there are
    as many classes, else class_7; a warning says how many do. Gaps in COCO's numbers are no cause for one.

    Args:
        id2label: of the checkpoint's config.json.
        classes: how many the model tells apart, "no object" not counted.
        weights: for the warning.
    """
    coco = coco_panoptic() if classes == _WIDTH else {}
    given = {i: name for i, name in id2label.items() if name and not _PLACEHOLDER.fullmatch(name)}
    missing = [i for i in range(classes) if i not in given]
    from_coco = [i for i in missing if i in coco]
    if from_coco:
        log.warning("model %r has no names for %d classes: COCO's are taken", weights, len(from_coco))
    elif missing and not coco:
        log.warning("model %r has no names for %d of its %d classes", weights, len(missing), classes)
    return tuple(given.get(i) or (coco[i][0] if i in coco else f"class_{i}") for i in range(classes))


def things(names: tuple[str, ...]) -> tuple[bool | None, ...]:
    """Per class whether it is a thing or stuff, None where it is not called as COCO's class of its number.

    Checkpoints spell COCO's names with or without "-merged", "-other" and "-stuff".
    """
    coco = coco_panoptic() if len(names) == _WIDTH else {}
    return tuple(
        coco[i][1] if i in coco and _plain(coco[i][0]) == _plain(name) else None
        for i, name in enumerate(names)
    )


def _plain(name: str) -> str:
    return re.sub(r"-(other|merged|stuff)", "", name.lower())
