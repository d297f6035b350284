"""Everything that may be wrong with an index, found in one pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lmm_classifier.errors import IndexFolderError
from lmm_classifier.index.calibration import read_calibration
from lmm_classifier.index.manifest import read_manifest
from lmm_classifier.index.search import open_space
from lmm_classifier.index.shards import read_records, verify_vectors
from lmm_classifier.storage.atomic_files import is_single_file, verify

_UNIT = 1e-3
"""How far the norm of a unit row may be from 1: what bfloat16 leaves is well within."""


def problems_of(index: Path) -> list[str]:
    """Read every byte of an index folder; one line per damaged file, none if all is well.

    Raises:
        IndexFolderError: there is no index, or its manifest is damaged, so that nothing else is known.
    """
    if is_single_file(index):
        raise IndexFolderError(f"{index} is a single file; `index info` reads all of it")
    manifest = read_manifest(index)
    problems = []
    for name, record in manifest.files.items():
        try:
            (verify_vectors if name.endswith(".npy") else verify)(index, name, record)
        except IndexFolderError as error:
            problems.append(str(error))
    try:
        read_calibration(index)
    except IndexFolderError as error:
        problems.append(str(error))
    if problems:
        return problems
    try:
        records = read_records(index, manifest.files)
        for number in range(len(manifest.spaces)):
            opened = open_space(index, manifest, records, number)
            norms = [np.linalg.norm(part, axis=1) for part in opened.vectors.parts]
            if any(np.abs(norm - 1).max(initial=0) > _UNIT for norm in norms):
                problems.append(f"{index}: vectors of {opened.encoder.name} are not unit rows; rebuild it")
    except IndexFolderError as error:
        problems.append(str(error))
    return problems
