"""Whether a resolution has every direct dependency at its lower bound: a bound that nothing tries is a guess.

python .ci/check_lowest.py lowest.txt
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version


def main(resolution: Path) -> int:
    """Print each bound that is not what was resolved; the number of them."""
    lines = [Requirement(line) for line in resolution.read_text(encoding="utf-8").splitlines() if line]
    found = {canonicalize_name(line.name): next(iter(line.specifier)).version for line in lines}
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    wrong = 0
    for text in asked:
        wanted = Requirement(text)
        name = canonicalize_name(wanted.name)
        if name == project["name"] or (wanted.marker and not wanted.marker.evaluate()):
            continue
        lowest = [bound.version for bound in wanted.specifier if bound.operator in (">=", "==")]
        if lowest and Version(found[name]) != max(map(Version, lowest)):
            print(f"{text}: the lowest that fits the others is {found[name]}")
            wrong += 1
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
