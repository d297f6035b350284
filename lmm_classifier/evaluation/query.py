"""One photo whose right answer is known, and what was answered."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lmm_classifier.api.classification import Classification
from lmm_classifier.types import UNKNOWN

Group = Literal["known", "near", "far"]


@dataclass(frozen=True, slots=True)
class EvaluatedItem:
    """An answered query.

    Attributes:
        photo: path of the file.
        truth: the right answer: its label, or "unknown" if the index lacks it.
        answer: what the classifier said.
        far: of an unknown, whether it resembles no label of the index.
        shows: the label its corpus gives it; "" where that gives none.
    """

    photo: Path
    truth: str
    answer: Classification
    far: bool = False
    shows: str = ""

    @property
    def group(self) -> Group:
        """Known, or which kind of unknown."""
        if self.truth != UNKNOWN:
            return "known"
        return "far" if self.far else "near"

    @property
    def right(self) -> bool:
        """Whether the answer is the right one."""
        return self.answer.label == self.truth

    @property
    def kind(self) -> str:
        """What the reranker made of it, or else whether retrieval was right."""
        was_right = self.answer.retrieval_label == self.truth
        if self.right != was_right:
            return "correction" if self.right else "regression"
        return "right" if self.right else "wrong"
