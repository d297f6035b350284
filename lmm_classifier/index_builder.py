"""`python -m lmm_classifier.index_builder ROOT --output PATH --batch-size N`: the documented entry point."""

from __future__ import annotations

import sys

from lmm_classifier.api.build_index import build_index_from_directory
from lmm_classifier.cli import main

__all__ = ["build_index_from_directory"]

if __name__ == "__main__":
    main(["index", "build", *sys.argv[1:]])
