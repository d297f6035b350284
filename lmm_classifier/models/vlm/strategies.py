"""How a vision-language model is asked about the candidates of an image, and what its answers say."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from PIL import Image
from scipy.special import log_softmax

from lmm_classifier.models.base import AnswerForm, Question
from lmm_classifier.models.vlm.prompts import DEFAULT_PROMPT, YES_NO, render_prompt
from lmm_classifier.types import UNKNOWN, Float64Array, FloatArray

Mode = Literal["listwise", "pointwise", "pairwise"]
Scoring = Literal["likelihood", "normalised", "letter"]

LETTER_PROMPT = "Which label fits {image_description} best?"
_POINTWISE_PROMPT = "Does the label {candidate} fit {image_description}?"
_PAIRWISE_PROMPT = "Do the two images show the same kind of thing?"
LONGEST_NAME = 100
"""Characters of a label that a prompt shows: a file name can have thousands, and no name needs them."""
# A content-free input (Zhao et al., ICML 2021): what the model says of it is prejudice. As small as Qwen2-VL
# takes images, two by two visual tokens, for it is asked about as often as the photos are.
BLANK = Image.new("RGB", (56, 56), (128, 128, 128))
_NAMES_OF_EXEMPLARS = "{}:"


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """An image and what it may be.

    Attributes:
        image: upright RGB.
        options: labels in the order presented; UNKNOWN may be one.
        exemplars: label -> photos of it.
        due: as `Question` has it.
        open: whether UNKNOWN means none of the others; else it is a label like any.
    """

    image: Image.Image
    options: tuple[str, ...]
    exemplars: Mapping[str, tuple[Image.Image, ...]] = field(default_factory=dict)
    due: float | None = None
    open: bool = True

    @property
    def labels(self) -> tuple[str, ...]:
        """The options that can be asked about by themselves."""
        return tuple(option for option in self.options if option != UNKNOWN or not self.open)


@dataclass(frozen=True, slots=True)
class PromptStrategy:
    """A way to ask.

    Attributes:
        mode: all candidates in one prompt; each by itself, "is this a ...?"; or each by photos of it, "do
            these show the same?".
        scoring: of a list: the likelihood of the candidate's whole name; that per byte of the name, less
            what a blank image gets; or the probability of the letter it is listed under.
        template: of the prompt. {candidates} in a list by name, {candidate} in "pointwise",
            {image_description} in all.
        permutations: orders of a list that are asked and averaged, each a rotation of the one given; at most
            as many as there are options.
    """

    mode: Mode = "listwise"
    scoring: Scoring = "likelihood"
    template: str = ""
    permutations: int = 1

    def questions(self, case: Case) -> list[Question]:
        """What the model is asked about a case."""
        names = shown_names(case.options)
        if self.mode == "listwise":
            return [
                self._listed(case, names, order, image)
                for order in self._orders(case)
                for image in self._looked_at(case)
            ]
        return [
            Question(case.image, self._about(names[label]), YES_NO, "yes_no", shown, case.due)
            for label in case.labels
            for shown in self._shown(case, label)
        ]

    def log_probabilities(self, case: Case, rated: Sequence[FloatArray]) -> FloatArray:
        """Log-probability of each option of a case, float32 (options,).

        Args:
            case: the case.
            rated: what the model said to its `questions`.
        """
        if self.mode == "listwise":
            return self._of_lists(case, rated)
        # One of the candidates or none: the odds of "yes, and all others no" against "all no" are its own.
        answers = iter(rated)
        odds = {
            label: float(np.mean([_log_odds(next(answers)) for _ in self._shown(case, label)]))
            for label in case.labels
        }
        return _normalised([odds.get(option, 0.0) for option in case.options])

    def without(self, prior: Sequence[float], values: FloatArray) -> FloatArray:
        """Log-probabilities of the options of a list, less what their places in it got them.

        Args:
            prior: log-probability that the model gives each place, whatever stands there (PriDe: Zheng et
                al., ICLR 2024).
            values: float32 (options,), of `log_probabilities`.
        """
        shifts = [order[0] for order in rotations(len(values))[: self.permutations]]
        places = np.asarray([[(i - shift) % len(values) for shift in shifts] for i in range(len(values))])
        return _normalised(values - np.asarray(prior, np.float64)[places].mean(axis=1))

    def _listed(
        self, case: Case, names: Mapping[str, str], order: Sequence[int], image: Image.Image
    ) -> Question:
        """The question that lists all candidates, in an order (options,), about this or another image."""
        options = tuple(names[case.options[i]] for i in order)
        form: AnswerForm = "letter" if self.scoring == "letter" else "text"
        prompt = render_prompt(self.template, options)
        exemplars = tuple(
            (_NAMES_OF_EXEMPLARS.format(names[label]), photo)
            for label in (case.options[i] for i in order)
            for photo in case.exemplars.get(label, ())
        )
        return Question(image, prompt, options, form, exemplars, case.due)

    def _of_lists(self, case: Case, rated: Sequence[FloatArray]) -> FloatArray:
        answers = iter(rated)
        lengths = np.asarray([len(name.encode()) for name in shown_names(case.options).values()], np.float64)
        total = np.zeros(len(case.options))
        for order in self._orders(case):
            values = next(answers).astype(np.float64)
            if self.scoring == "normalised":
                values = (values - next(answers)) / lengths[list(order)]
            total[list(order)] += log_softmax(values)
        return _normalised(total / len(self._orders(case)))

    def _orders(self, case: Case) -> list[tuple[int, ...]]:
        return rotations(len(case.options))[: self.permutations]

    def _looked_at(self, case: Case) -> tuple[Image.Image, ...]:
        return (case.image, BLANK) if self.scoring == "normalised" else (case.image,)

    def _about(self, name: str) -> str:
        return render_prompt(self.template, (name,))

    def _shown(self, case: Case, label: str) -> Iterator[tuple[tuple[str, Image.Image], ...]]:
        """The photos beside each question about a label."""
        if self.mode == "pointwise":
            yield ()
        else:
            for photo in case.exemplars[label]:
                yield (("", photo),)


def default_template(mode: Mode, scoring: Scoring) -> str:
    """What is asked where nobody wrote a prompt."""
    listwise = LETTER_PROMPT if scoring == "letter" else DEFAULT_PROMPT
    return {"listwise": listwise, "pointwise": _POINTWISE_PROMPT, "pairwise": _PAIRWISE_PROMPT}[mode]


def contradiction(strategy: PromptStrategy, exemplars: int, by_a_server: bool) -> str | None:
    """What options say that means nothing; None where they say what can be done.

    Args:
        strategy: the way.
        exemplars: photos of each candidate.
        by_a_server: whether the model is elsewhere, and tells letters and words, no likelihoods.
    """
    listed = strategy.mode == "listwise"
    if strategy.mode == "pairwise" and not exemplars:
        return "pairwise compares with photos of each candidate: set exemplars to 1 or more"
    if strategy.mode == "pointwise" and exemplars:
        return "pointwise shows no photos of candidates: leave exemplars out"
    if not listed and (strategy.scoring != "likelihood" or strategy.permutations != 1):
        return "scoring and permutations are of lists: leave them out, or set mode: listwise"
    if by_a_server and listed and strategy.scoring != "letter":
        return "a server does not tell how likely a name is: set scoring: letter"
    return None


def needed_placeholder(mode: Mode, scoring: Scoring) -> str | None:
    """What a prompt must hold, for it would not name what is asked about."""
    if mode == "pointwise":
        return "{candidate}"
    return "{candidates}" if mode == "listwise" and scoring != "letter" else None


def rotations(n: int) -> list[tuple[int, ...]]:
    """The n orders in which each of n options takes each place once."""
    return [tuple((i + shift) % n for i in range(n)) for shift in range(n)]


def shown_names(labels: Sequence[str]) -> dict[str, str]:
    """What a prompt calls each label: on one line, not too long, and none like another.

    A label may be any file name: what would break the lines of a list, or is no text at all, is left out.
    """
    names: dict[str, str] = {}
    for label in labels:
        line = "".join(c for c in " ".join(label.split()) if unicodedata.category(c) not in {"Cc", "Cs"})
        name = line if len(line) <= LONGEST_NAME else line[: LONGEST_NAME - 3] + "..."
        name, tries = name or "(no name)", 1
        while (distinct := name if tries == 1 else f"{name} ({tries})") in names.values():
            tries += 1
        names[label] = distinct
    return names


def _log_odds(yes_no: FloatArray) -> float:
    return float(yes_no[0]) - float(yes_no[1])


def _normalised(values: Sequence[float] | Float64Array) -> FloatArray:
    return np.asarray(log_softmax(np.asarray(values, np.float64)), np.float32)
