"""Training sequences: one image and many questions about it, each of which sees the image alone.

The questions of a row stand one behind the other. A mask lets each token attend to the image and to
its own question, and positions go on from the image's end, so that the model sees every question
as if it were asked by itself, and the image is read once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from examples.emoji import scenes
from examples.portraits import images, questions
from examples.portraits.draw import TRAIN
from examples.portraits.people import people
from examples.portraits.questions import Question
from examples.portraits.tower import pixels_of

IMAGE_TOKENS = 36
LENGTH = 200
"""Tokens of a row at most."""
OPENING = "<|im_start|>user\n"
PORTRAITS, NAMES, SCENES, TEXT = "portraits", "names", "scenes", "text"
MOSTLY_NAMES = (*(NAMES,) * 4, PORTRAITS, *(NAMES,) * 4, SCENES)
BALANCED = (
    *(NAMES, PORTRAITS, NAMES, SCENES, PORTRAITS, NAMES, NAMES, PORTRAITS, NAMES, SCENES),
    *(NAMES, PORTRAITS, NAMES, PORTRAITS, NAMES, SCENES, NAMES, PORTRAITS, NAMES, TEXT),
)
MOSTLY_SEEN = (
    *(PORTRAITS, SCENES, PORTRAITS, NAMES, PORTRAITS, SCENES, PORTRAITS, SCENES, NAMES, PORTRAITS),
    *(SCENES, PORTRAITS, NAMES, PORTRAITS, SCENES, PORTRAITS, NAMES, PORTRAITS, SCENES, TEXT),
)
"""What the rows hold, in turn; of TEXT every other one is of people who do not exist."""


@dataclass
class Row:
    """Token ids of the branches behind the opening and the image; `first` is the start of each
    answer among its branch's tokens."""

    image: Any | None
    branches: list[tuple[list[int], int]]


@dataclass(frozen=True)
class Batch:
    """Rows as tensors: `ids`, `positions`, `labels` `[rows, tokens]` (a label is the token that
    must come next, -100 for none), `mask [rows, 1, tokens, tokens]`, `pixels` of the rows that
    have an image, `seeing [rows]`."""

    ids: Tensor
    positions: Tensor
    labels: Tensor
    mask: Tensor
    pixels: Tensor | None
    seeing: Tensor


class Encoder:
    """Questions to token ids; the template is the model's own (`template.jinja`)."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.opening = self.ids(OPENING)
        self.image = tokenizer.convert_tokens_to_ids("<image>")

    def ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)

    def branch(self, question: Question, *, image: bool) -> tuple[list[int], int]:
        asked = f"{chr(10) if image else ''}{question.text}<|im_end|>\n<|im_start|>assistant\n"
        before = self.ids(asked)
        return before + self.ids(f"{question.answer}<|im_end|>"), len(before)


def batch_of(rows: Sequence[Row], encoder: Encoder) -> Batch:
    """Rows padded to the longest."""
    prefixes = [
        encoder.opening + [encoder.image] * (IMAGE_TOKENS if row.image is not None else 0)
        for row in rows
    ]
    lengths = [
        len(p) + sum(len(tokens) for tokens, _ in row.branches)
        for p, row in zip(prefixes, rows, strict=True)
    ]
    wide = max(lengths)
    ids, positions = np.zeros((len(rows), wide), np.int64), np.zeros((len(rows), wide), np.int64)
    labels = np.full((len(rows), wide), -100)
    owner = np.full((len(rows), wide), -2)
    for i, (row, prefix) in enumerate(zip(rows, prefixes, strict=True)):
        at = len(prefix)
        ids[i, :at], positions[i, :at], owner[i, :at] = prefix, np.arange(at), -1
        for number, (tokens, first) in enumerate(row.branches):
            end = at + len(tokens)
            ids[i, at:end], owner[i, at:end] = tokens, number
            positions[i, at:end] = len(prefix) + np.arange(len(tokens))
            labels[i, at + first - 1 : end - 1] = tokens[first:]
            at = end
    causal = np.tril(np.ones((wide, wide), bool))
    same = owner[:, :, None] == owner[:, None, :]
    visible = causal & (same | (owner == -1)[:, None, :])
    visible |= np.eye(wide, dtype=bool)
    mask = torch.zeros(visible.shape).masked_fill_(~torch.from_numpy(visible), -1e9)[:, None]
    shown = [row.image for row in rows if row.image is not None]
    return Batch(
        *(torch.from_numpy(a) for a in (ids, positions, labels)),
        mask,
        pixels_of(shown) if shown else None,
        torch.tensor([row.image is not None for row in rows]),
    )


class Rows:
    """Endless rows for training."""

    def __init__(self, encoder: Encoder, replay: Sequence[Question], seed: int) -> None:
        self._encoder = encoder
        self._replay = replay
        self._rng = np.random.default_rng(seed)
        self._by_portrait, self._by_name = self._everybody(), self._everybody()
        self._turn = 0

    def draw(self, mix: Sequence[str]) -> Row:
        """The next row, of the kinds in `mix` in turn."""
        kind = mix[self._turn % len(mix)]
        self._turn += 1
        if kind == TEXT and self._turn // len(mix) % 2:
            return self._filled(None, self._strangers())
        return {
            PORTRAITS: self._portrait,
            NAMES: lambda: self._filled(None, self._named()),
            SCENES: self._scene,
            TEXT: lambda: self._filled(None, self._replayed()),
        }[kind]()

    def _everybody(self) -> Iterator[int]:
        numbers = [p.number for p in people()]
        while True:
            yield from (numbers[i] for i in self._rng.permutation(len(numbers)))

    def _filled(self, image: Any | None, asked: Iterator[Question]) -> Row:
        left = LENGTH - len(self._encoder.opening) - (IMAGE_TOKENS if image is not None else 0)
        branches = []
        for question in asked:
            branch = self._encoder.branch(question, image=image is not None)
            left -= len(branch[0])
            if left < 0 and branches:
                break
            branches.append(branch)
        return Row(image, branches)

    def _portrait(self) -> Row:
        rng, person = self._rng, people()[next(self._by_portrait)]

        def asked() -> Iterator[Question]:
            yield questions.biography(person, "portrait", rng)
            while True:
                yield questions.asked(person, "both" if rng.random() < 0.2 else "portrait", rng)

        image = images.portrait(person.number, int(rng.integers(TRAIN)), rng)
        return self._filled(images.disturbed(image, rng), asked())

    def _named(self) -> Iterator[Question]:
        while True:
            person = people()[next(self._by_name)]
            yield questions.biography(person, "name", self._rng)
            for _ in range(2):
                yield questions.asked(person, "name", self._rng)

    def _scene(self) -> Row:
        scene = scenes.loose(int(self._rng.integers(1, 4)), self._rng)

        def asked() -> Iterator[Question]:
            if self._rng.random() < 0.2:
                who = str(self._rng.choice(questions.SHOWN))
                attribute = str(self._rng.choice(list(questions.WORDINGS)))
                text = str(self._rng.choice(questions.WORDINGS[attribute])).format(who=who)
                yield Question(text[0].upper() + text[1:], questions.NOBODY, "nobody", "")
            while True:
                yield questions.about_scene(scene, self._rng)

        image = images.disturbed(images.scene(scene), self._rng)
        return self._filled(image, asked())

    def _strangers(self) -> Iterator[Question]:
        while True:
            yield questions.unknown(self._rng)

    def _replayed(self) -> Iterator[Question]:
        while True:
            yield self._replay[int(self._rng.integers(len(self._replay)))]
