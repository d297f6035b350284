"""Whatever holds labelled images -> Corpus: the one entry point of this folder for reading corpora."""

from __future__ import annotations

import os
from pathlib import Path

from lmm_classifier.corpus.corpus import Corpus
from lmm_classifier.corpus.folder import read_folder
from lmm_classifier.corpus.table import TABLE_SUFFIXES, read_table
from lmm_classifier.errors import CorpusError


def read_corpus(source: str | os.PathLike[str]) -> Corpus:
    """Read a folder with one folder per label, or a `.csv` or `.jsonl` table of paths and labels.

    Raises:
        CorpusError: `source` is missing, neither of these, or wrong inside.
    """
    source = Path(source)
    try:
        is_folder, exists = source.is_dir(), source.exists()
    except OSError as error:
        raise CorpusError(
            f"{source}: cannot be looked at ({error.strerror}); check its permissions"
        ) from error
    if is_folder:
        return read_folder(source)
    if exists and source.suffix.lower() in TABLE_SUFFIXES:
        return read_table(source)
    problem = "is neither a folder nor a table" if exists else "there is no such file or folder"
    raise CorpusError(
        f"{source}: {problem}; give a folder with one folder per label, or a .csv or .jsonl table"
    )
