"""Check what `lmm-classifier demo` left behind: the figures the README states, and the files it names."""

from __future__ import annotations

import json
import sys
from pathlib import Path

folder = Path(sys.argv[1])
summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
gain = summary["hybrid_accuracy"] - summary["retrieval_accuracy"]
written = ("report.html", "config.yaml", "index/manifest.json", "index/calibration.json")
checks = {
    "hybrid at least 2 points above retrieval": gain >= 0.02,
    "at least 3 corrections per regression": summary["corrections"] >= max(1, 3 * summary["regressions"]),
    "unknown AUROC at least .90": summary["unknown_auroc"] >= 0.90,
    "within 90 seconds": summary["seconds"] <= 90,
    "report and settings written": all((folder / name).stat().st_size for name in written),
}
for check, holds in checks.items():
    print("ok  " if holds else "FAIL", check)
sys.exit(not all(checks.values()))
