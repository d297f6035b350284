"""What all reviewers of a run say together, and where they contradict each other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lmm_classifier.labelling.annotation_log import (
    DECISIONS,
    SUFFIX,
    Annotation,
    AnnotationLog,
    Photo,
    log_of,
)


class Annotations:
    """The logs of a run, as far as they have been read.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._logs: dict[str, AnnotationLog] = {}  # file name -> log
        self._folded: tuple[list[int], dict[Photo, dict[str, Annotation]]] = ([], {})  # for how many presses

    def read(self) -> None:
        """Take in what has been written since, by whomever.

        Raises:
            RunError: a log is damaged; the message names file and line.
        """
        for path in sorted((self.folder / DECISIONS).glob(f"[!.]*{SUFFIX}")):
            self._logs.setdefault(path.name, AnnotationLog(path)).read()

    def log(self, reviewer: str) -> AnnotationLog:
        """The log of a reviewer.

        Raises:
            ConfigError: this cannot be a reviewer's name.
        """
        log = log_of(self.folder, reviewer)
        return self._logs.setdefault(log.path.name, log)

    @property
    def logs(self) -> tuple[AnnotationLog, ...]:
        """Of all reviewers."""
        return tuple(self._logs.values())

    def photos(self) -> Mapping[Photo, Mapping[str, Annotation]]:
        """Of each photo of which anything was said: reviewer -> what was last said and not taken back."""
        presses = [len(log) for log in self.logs]
        if self._folded[0] != presses:
            found: dict[Photo, dict[str, Annotation]] = {}
            for log in self.logs:
                for photo, decision in log.photos().items():
                    found.setdefault(photo, {})[log.reviewer] = decision
            self._folded = presses, found
        return self._folded[1]

    def conflicts(self) -> Mapping[Photo, Mapping[str, Annotation]]:
        """The photos of which reviewers say different things, as `photos`; they end when all agree."""
        return {photo: said for photo, said in self.photos().items() if contradict(said)}

    def settled(self) -> Mapping[Photo, Annotation]:
        """The photos of which all who answered say the same, and the latest who did; None as label: rejected.

        Of these a corpus can be made: who skipped a photo has said nothing, and conflicts are left out.
        """
        return {
            photo: max(answers, key=lambda decision: decision.time)
            for photo, said in self.photos().items()
            if not contradict(said) and (answers := [each for each in said.values() if each.answers])
        }

    def groups(self) -> Mapping[str, Mapping[str, Annotation]]:
        """Of each group that was decided as a whole: reviewer -> the last of these that stands."""
        found: dict[str, dict[str, Annotation]] = {}
        for log in self.logs:
            for decision in log.standing.values():
                if decision.group is not None:
                    found.setdefault(decision.group, {})[log.reviewer] = decision
        return found


def contradict(said: Mapping[str, Annotation]) -> bool:
    """Whether reviewers who answered give a photo different labels, or one a label and one none."""
    return len({decision.label for decision in said.values() if decision.answers}) > 1
