"""Scores many continuations of shared prompt prefixes by a Qwen-VL model, in few forward passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from inspect import signature
from itertools import zip_longest
from typing import Any

import torch

from lmm_classifier.models.runtime.placement import entry_device, is_on_several_gpus

# Side by side, tokens take memory by the square of their number; what is longer goes alone.
_MAX_TOKENS = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """An image as the model takes it.

    Attributes:
        pixel_values: float (patches, values of a patch).
        grid: int64 (1, 3), patches in time, height and width.
    """

    pixel_values: torch.Tensor
    grid: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class TokenizedQuestion:
    """One question as tokens.

    Attributes:
        place: number of the question.
        prompt: t tokens, up to where the answer begins; the last one is text.
        positions: int64 (3, t), where each stands in time, height and width.
        pictures: those of the prompt, in order.
        starts: per picture, its first token.
        answers: tokens of each; the last of them is only scored.
    """

    place: int
    prompt: list[int]
    positions: torch.Tensor
    pictures: tuple[Picture, ...]
    starts: tuple[int, ...]
    answers: list[list[int]]


@dataclass(frozen=True, slots=True, eq=False)
class _Continuation:
    """The end of one prompt and some of the answers to it, which share it and are blind to each other.

    Attributes:
        asked: the question.
        begin: its tokens before this are in the memory.
        answers: the answers.
    """

    asked: TokenizedQuestion
    begin: int
    answers: Sequence[list[int]]

    @property
    def tokens(self) -> list[int]:
        """What is fed: int (n,)."""
        return [
            *self.asked.prompt[self.begin :],
            *(token for answer in self.answers for token in answer[:-1]),
        ]

    @property
    def owners(self) -> list[int]:
        """Whose each fed token is: -1 of the prompt, else the number of the answer."""
        rest = len(self.asked.prompt) - self.begin
        return [-1] * rest + [i for i, answer in enumerate(self.answers) for _ in answer[:-1]]

    @property
    def positions(self) -> torch.Tensor:
        """Where each fed token stands, int64 (3, n)."""
        after = self.asked.positions[:, -1:] + 1  # text stands at the same place in all three
        parts = [after + torch.arange(len(answer) - 1) for answer in self.answers]
        return torch.cat([self.asked.positions[:, self.begin :], *parts], dim=1)

    @property
    def pictures(self) -> Iterator[Picture]:
        """Those that are not in the memory."""
        for picture, start in zip(self.asked.pictures, self.asked.starts, strict=True):
            if start >= self.begin:
                yield picture

    def scored(self, offset: int) -> Iterator[tuple[int, int, int]]:
        """(answer, fed token that it is read from, counted from `offset`, token) of all that is scored."""
        last = len(self.asked.prompt) - self.begin - 1
        start = last + 1
        for number, answer in enumerate(self.answers):
            for i, token in enumerate(answer):
                yield number, offset + (last if i == 0 else start + i - 1), token
            start += len(answer) - 1


def log_likelihoods(
    model: Any, rows: Sequence[Sequence[TokenizedQuestion]], most: int
) -> dict[int, list[float]]:
    """Per place, the log-likelihoods of its answers.

    What the questions of a row begin with goes through the model once, the images in it included; whatever
    follows goes on from the keys and values that are left of it.

    Args:
        model: of transformers, with an image-text head.
        rows: questions that begin alike, with the same first picture.
        most: answers of a row that go through the model side by side.
    """
    begins = [_shared(row) for row in rows]
    memory, mask = _read(model, rows, begins)
    scores: dict[int, list[float]] = {asked.place: [] for row in rows for asked in row}
    parts = (_parts(row, begin, most) for row, begin in zip(rows, begins, strict=True))
    for batch in zip_longest(*parts, fillvalue=()):
        for place, values in _go_on(model, batch, memory, mask):
            scores[place] += values
    return scores


def _shared(row: Sequence[TokenizedQuestion]) -> int:
    """Tokens that all prompts of a row begin with, showing the same pictures; one is always left over."""
    first = row[0]
    common = min(len(asked.prompt) for asked in row) - 1
    for other in row[1:]:
        pairs = zip(first.prompt[:common], other.prompt[:common], strict=True)
        common = next((i for i, (a, b) in enumerate(pairs) if a != b), common)
        for mine, its, start in zip(first.pictures, other.pictures, first.starts, strict=False):
            if mine is not its:
                common = min(common, start)
                break
    return common


def _read(
    model: Any, rows: Sequence[Sequence[TokenizedQuestion]], begins: Sequence[int]
) -> tuple[Any, torch.Tensor]:
    """Keys and values of the beginnings, and a mask (rows, longest) that is 1 on their tokens."""
    longest = max(begins)
    tokens = torch.zeros(len(rows), longest, dtype=torch.long)
    positions = torch.zeros(3, len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    pictures: list[Picture] = []
    for i, (row, begin) in enumerate(zip(rows, begins, strict=True)):
        shown, place = row[0], slice(longest - begin, longest)
        tokens[i, place] = torch.tensor(shown.prompt[:begin])
        positions[:, i, place] = shown.positions[:, :begin]
        mask[i, place] = 1
        pictures += [p for p, start in zip(shown.pictures, shown.starts, strict=True) if start < begin]
    read = _forward(model, tokens, positions, mask, pictures, None, torch.tensor([longest - 1]))
    return getattr(read, _cache_name(model)), mask


def _parts(row: Sequence[TokenizedQuestion], begin: int, most: int) -> Iterator[list[_Continuation]]:
    """What goes through the model side by side: at most so many answers, and of not too many tokens."""
    part: list[_Continuation] = []
    answers = tokens = 0
    for asked in row:
        for some in _runs(asked.answers, most, len(asked.prompt) - begin):
            continuation = _Continuation(asked, begin, some)
            more = len(continuation.tokens)
            if part and (answers + len(some) > most or tokens + more > _MAX_TOKENS):
                yield part
                part, answers, tokens = [], 0, 0
            part.append(continuation)
            answers, tokens = answers + len(some), tokens + more
    yield part


def _runs(answers: Sequence[list[int]], most: int, rest: int) -> Iterator[Sequence[list[int]]]:
    """The answers to one question, so many at a time that they fit beside the rest of its prompt."""
    run: list[list[int]] = []
    for answer in answers:
        if run and (len(run) == most or rest + sum(map(len, run)) + len(answer) > _MAX_TOKENS):
            yield run
            run = []
        run.append(answer)
    if run:
        yield run


def _go_on(
    model: Any, batch: Sequence[Sequence[_Continuation]], memory: Any, mask: torch.Tensor
) -> Iterator[tuple[int, list[float]]]:
    """Place and log-likelihoods of the answers of each continuation; the memory is left as it was."""
    longest = max(sum(len(c.tokens) for c in row) for row in batch)
    tokens = torch.zeros(len(batch), longest, dtype=torch.long)
    positions = torch.zeros(3, len(batch), longest, dtype=torch.long)
    whose, part = torch.full_like(tokens, -1), torch.full_like(tokens, -1)
    wanted: list[tuple[int, int, int]] = []
    found: list[tuple[_Continuation, list[int]]] = []
    for i, row in enumerate(batch):
        offset = 0
        for number, continuation in enumerate(row):
            place = slice(offset, offset + len(continuation.tokens))
            tokens[i, place] = torch.tensor(continuation.tokens)
            positions[:, i, place] = continuation.positions
            whose[i, place], part[i, place] = torch.tensor(continuation.owners), number
            scored = list(continuation.scored(offset))
            wanted += [(i, read, token) for _, read, token in scored]
            found.append((continuation, [answer for answer, _, _ in scored]))
            offset = place.stop
    if not wanted:
        return
    columns = torch.tensor(sorted({read for _, read, _ in wanted}))
    if is_on_several_gpus(model):
        columns = torch.arange(int(columns[0]), longest)
    sees = torch.cat([mask[:, None, :].expand(-1, longest, -1).bool(), _sees(whose, part)], dim=2)
    closed = torch.zeros(sees.shape, dtype=model.dtype).masked_fill(~sees, torch.finfo(model.dtype).min)
    pictures = [picture for row in batch for continuation in row for picture in continuation.pictures]
    logits = _forward(model, tokens, positions, closed[:, None], pictures, memory, columns).logits.float()
    memory.crop(-longest)
    at = (
        torch.tensor([i for i, _, _ in wanted]),
        torch.searchsorted(columns, torch.tensor([r for _, r, _ in wanted])),
    )
    target = torch.tensor([token for _, _, token in wanted])
    values = (logits[(*at, target)] - logits.logsumexp(dim=-1)[at]).cpu()
    start = 0
    for continuation, numbers in found:
        sums = torch.zeros(len(continuation.answers), dtype=values.dtype)
        sums.index_add_(0, torch.tensor(numbers, dtype=torch.long), values[start : start + len(numbers)])
        start += len(numbers)
        yield continuation.asked.place, sums.tolist()


def _sees(whose: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """Which fed token each one sees, bool (rows, n, n): earlier ones of its prompt and of its own answer."""
    n = whose.shape[1]
    earlier = torch.ones(n, n, dtype=torch.bool).tril()
    same = part[:, :, None] == part[:, None, :]
    open_to = (whose[:, None, :] == -1) | (whose[:, :, None] == whose[:, None, :])
    return same & open_to & earlier


def _forward(
    model: Any,
    tokens: torch.Tensor,
    positions: torch.Tensor,
    mask: torch.Tensor,
    pictures: Sequence[Picture],
    memory: Any,
    columns: torch.Tensor,
) -> Any:
    """One pass; logits of the columns alone, for a vocabulary times all tokens would be gigabytes."""
    device = entry_device(model)
    seen = {}
    if pictures:
        seen["pixel_values"] = torch.cat([p.pixel_values for p in pictures]).to(device, model.dtype)
        seen["image_grid_thw"] = torch.cat([p.grid for p in pictures]).to(device)
    return model(
        input_ids=tokens.to(device),
        position_ids=positions.to(device),
        attention_mask=mask.to(device),
        logits_to_keep=_kept(model, columns, tokens.shape[1], device),
        use_cache=True,
        **{_cache_name(model): memory},
        **seen,
    )


def _kept(model: Any, columns: torch.Tensor, n: int, device: torch.device) -> int | torch.Tensor:
    """The columns of n that logits are wanted of, as the model takes them.

    With layers on several GPUs they must be the last ones, given by their number: a tensor of them would be
    brought to the first GPU, and what it picks from lies on the last.
    """
    return n - int(columns[0]) if is_on_several_gpus(model) else columns.to(device)


def _cache_name(model: Any) -> str:
    """What the installed transformers calls the keys and values, as an argument and in what is returned."""
    return "cache" if "cache" in signature(type(model).forward).parameters else "past_key_values"
