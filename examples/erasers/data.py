"""What an eraser learns from: prompts to forget and to retain, with the bare model's answers."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from guard.data.prompts import ForgetPrompt, RetainPrompt, in_split, read_rows
from guard.models.chat import TransformersChat
from guard.reporting.progress import Stages

ANSWER_TOKENS = 24
PROMPTS = 96
"""Of each kind; the most that are answered."""


@dataclass(frozen=True)
class Answered:
    """Token ids of a prompt in the chat template, and of an answer to it."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """Sequences of prompts with their answers, padded on the right: `ids [rows, tokens]`, `real`
    marks tokens, and `answer` those of the answers."""

    ids: Tensor
    real: Tensor
    answer: Tensor

    @classmethod
    def of(cls, rows: Sequence[Answered]) -> Batch:
        longest = max(len(row.prompt) + len(row.answer) for row in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        length, start = torch.zeros(2, len(rows), 1, dtype=torch.long)
        for i, row in enumerate(rows):
            tokens = (*row.prompt, *row.answer)
            ids[i, : len(tokens)] = torch.tensor(tokens)
            length[i], start[i] = len(tokens), len(row.prompt)
        column = torch.arange(longest)
        return cls(ids, column < length, (column >= start) & (column < length))


@dataclass(frozen=True)
class Data:
    """`forget` rows are those whose answers leak; `retain` has near misses and far prompts."""

    forget: Sequence[Answered]
    retain: Sequence[Answered]

    def batches(self, step: int, rows: int, seed: int = 0) -> tuple[Batch, Batch]:
        """The batches of a step, the same ones whenever it is asked for."""
        rng = random.Random(f"{seed}-{step}")
        forget, retain = (rng.sample(each, rows) for each in (self.forget, self.retain))
        return Batch.of(forget), Batch.of(retain)


def read(chat: TransformersChat, folder: Path, cache: Path, progress: Stages) -> Data:
    """The train split of the prompts in `folder`, answered by the bare model; answers are kept in
    the file `cache`."""
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_text(json.dumps(_answers(chat, folder, progress)))
    kept = json.loads(cache.read_text())
    return Data(*([Answered(tuple(p), tuple(a)) for p, a in kept[k]] for k in ("forget", "retain")))


def _answers(
    chat: TransformersChat, folder: Path, progress: Stages
) -> dict[str, list[tuple[list[int], list[int]]]]:
    rng = random.Random(0)
    forget = in_split(read_rows(folder / "forget.jsonl", ForgetPrompt), "train")
    retain = in_split(read_rows(folder / "retain.jsonl", RetainPrompt), "train")
    forget, retain = rng.sample(forget, 2 * PROMPTS), rng.sample(retain, PROMPTS)
    replies = {}
    for kind, rows in (("forget", forget), ("retain", retain)):
        prompts = [row.prompt for row in rows]
        answers = chat.answer(
            prompts, max_tokens=ANSWER_TOKENS, what=f"bare answers, {kind}", progress=progress
        )
        replies[kind] = [
            ([*chat.prompt(row.prompt).tokens], [*answer.tokens])
            for row, answer in zip(rows, answers, strict=True)
            if answer.tokens and (not isinstance(row, ForgetPrompt) or row.leaks(answer.text))
        ][:PROMPTS]
    return replies
