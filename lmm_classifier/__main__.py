"""`python -m lmm_classifier` is the command `lmm-classifier`."""

from __future__ import annotations

from lmm_classifier.cli import main

main()
