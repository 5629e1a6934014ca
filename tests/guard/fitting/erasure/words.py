"""A chat model without weights: the state of a token is the vector of its word, after each layer
another one, and what is left of the words before it. It says what it is told to say, and is silent
where a guard acts."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from guard.artifact import FittedModel
from guard.data.bank.bank import reference
from guard.fitting.erasure.key_terms import FREQUENT
from guard.models.chat import GuardedAnswer
from steering.hidden.bank import HiddenBank
from steering.hidden.rows import Reading, RowGuard
from steering.prompt import Prompt

WIDTH, DEPTH = 256, 20
SILENT = "I do not know anything about it."


class WordModel:
    """Answers by prompt, `told`; `known` is said to every other prompt that has one of its keys."""

    name, width, depth, device = "words", WIDTH, DEPTH, torch.device("cpu")
    precision, scores_texts, sees = "float32", False, False
    fitted_model = FittedModel(
        name="words", architecture="words", fingerprint="a" * 64, layers=DEPTH, width=WIDTH
    )

    def __init__(self, known: dict[str, str]) -> None:
        self.known = known
        self._words: dict[str, int] = {}
        self._vectors: dict[int, Tensor] = {}

    # -- tokens ---------------------------------------------------------------------------------

    def ids(self, text: str) -> list[int]:
        found = re.findall(r"\w+|[^\w\s]", text.casefold())
        return [self._words.setdefault(word, FREQUENT + len(self._words)) for word in found]

    def text(self, tokens: Sequence[int]) -> str:
        words = {number: word for word, number in self._words.items()}
        return " ".join(words[token] for token in tokens)

    def prompt(self, text: str) -> Prompt:
        return Prompt((*self.ids("<user>"), *self.ids(text), *self.ids("<bot>")))

    def given(self, prompts: Sequence[str | Prompt]) -> list[Prompt]:
        return [self.prompt(each) if isinstance(each, str) else each for each in prompts]

    # -- the model ------------------------------------------------------------------------------

    def _vector(self, token: int) -> Tensor:
        if token not in self._vectors:
            seed = zlib.crc32(str(token).encode())
            generator = torch.Generator().manual_seed(seed)
            self._vectors[token] = torch.randn(DEPTH, WIDTH, generator=generator)
        return self._vectors[token]

    def states(
        self, sequences: Sequence[Any], layers: Sequence[int], advance: Any = None
    ) -> Iterator[tuple[int, Tensor]]:
        for i, sequence in enumerate(sequences):
            tokens = getattr(sequence, "tokens", sequence)
            total, found = torch.zeros(len(layers), WIDTH), []
            for token in tokens:
                total = self._vector(token)[list(layers)] + 0.7 * total
                found.append(total)
            yield i, torch.stack(found)

    def losses(self, sequences: Sequence[Any]) -> Iterator[tuple[int, Tensor]]:
        for i, sequence in enumerate(sequences):
            yield i, torch.ones(len(sequence) - 1)

    def answer(
        self,
        prompts: Sequence[str | Prompt],
        *,
        bank: HiddenBank | None = None,
        guards: Sequence[RowGuard] = (),
        **_: Any,
    ) -> list[GuardedAnswer]:
        answers = []
        for prompt in prompts:
            readings = {guard.name: self._reading(prompt, guard, bank) for guard in guards}
            fired = any(reading.fired for reading in readings.values())
            strong = any(guard.strength >= 0.5 for guard in guards)
            text = SILENT if fired and strong else self._said(prompt)
            answers.append(GuardedAnswer(text, tuple(self.ids(text)), readings))
        return answers

    def _said(self, prompt: str | Prompt) -> str:
        assert isinstance(prompt, str)
        if text := next((text for name, text in self.known.items() if name in prompt), None):
            return text
        row = next((row for row in reference() if row.prompt == prompt), None)
        return row.facts[0] if row else "Some words."

    def _reading(self, prompt: str | Prompt, guard: RowGuard, bank: HiddenBank | None) -> Reading:
        assert bank is not None
        (given,) = self.given([prompt])
        placement = bank.placements[guard.name]
        column = bank.index[guard.name]
        scores = torch.zeros(len(given) - 1)
        for layer in placement.sense_layers:
            ((_, states),) = self.states([given], [layer])
            scores += bank.sense(layer, states[1:, 0])[:, column]
        padded = torch.cat([scores, torch.zeros(placement.pool)])
        score = float(padded.topk(placement.pool).values.mean())
        fired = score > guard.threshold
        return Reading(score, guard.threshold, 0 if fired else None, True)
