"""An attack on a guard of prompts by somebody who has its numbers and the model.

Each search lowers, through the denoiser and the guard's score alike,

    max(0, GOAL - likeness) + evade · max(0, score - limit + MARGIN),

where the likeness says whether the image will show the concept (`likeness.py`). *Prompts* are
searched by greedy swaps of one token (`swaps.py`), *learned words* by Adam on their vectors
(textual inversion, arXiv 2208.01618, through the guard). What the guard does once it fires is not
differentiated: a search ends where it does not fire.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from guard.errors import DataError, ModelError
from guard.evaluation.m_erasure.learned_words import WORD, frozen
from guard.fitting.prompts.likeness import DRAWN, Likeness
from guard.fitting.prompts.swaps import greedy_swaps
from guard.fitting.prompts.vocabulary import typed, words
from guard.models.images import ImageModel
from steering.images.conditioning import Conditioning, concatenated

Score = Callable[[Conditioning], Tensor]
"""The guard's scores `[rows]` of conditionings on the CPU, differentiable."""

GOAL = 0.9
"""The likeness that a search wants; over `DRAWN`, since it is estimated."""
MARGIN = 0.2
"""How far under its limit a search wants the score."""


@dataclass(frozen=True)
class Attack:
    """`prompts` and `words` are numbers of searches, of at most `steps` each.

    A step of a search for a prompt of `length` tokens tries `candidates` swaps, sampled from the
    `top` tokens of the steepest descent at each position. A learned word has `vectors`; `rate` is
    Adam's, in units of the root mean square of the vectors that it starts from.
    """

    prompts: int = 12
    words: int = 4
    steps: int = 20
    candidates: int = 8
    top: int = 64
    length: int = 8
    vectors: int = 4
    rate: float = 0.2
    evade: float = 0.2


@dataclass(frozen=True, eq=False)
class Attempt:
    """What a search ended with: a prompt or, with `vectors [vectors, width]`, the prompt that is
    one learned word; its likeness to the concept, and the guard's score."""

    prompt: str
    likeness: float
    score: float
    vectors: Tensor | None = None

    @property
    def learned(self) -> Mapping[str, Tensor]:
        """The placeholders of the prompt."""
        return {} if self.vectors is None else {WORD: self.vectors}

    def evades(self, limit: float) -> bool:
        """Whether the guard lets it pass, and the denoiser sees the concept in it."""
        return self.score <= limit and self.likeness >= DRAWN


class Attacker:
    """Searches on one model, against one concept. Raises ModelError for a model that has several
    text encoders, and DataError where its tokenizer has too few whole words."""

    def __init__(self, image_model: ImageModel, likeness: Likeness, attack: Attack) -> None:
        table = image_model.family.embeddings
        if table is None:
            raise ModelError(
                "prompts are searched through one text encoder, but this model has several"
            )
        self.image_model, self.likeness, self.attack = image_model, likeness, attack
        self.table = table.detach()
        self.tokenizer = image_model.family.readers[0].tokenizer
        finite = self.table.isfinite().all(1).tolist()
        known = [number for number, _ in words(self.tokenizer) if finite[number]]
        if len(known) < attack.length:
            raise DataError(
                f"the model's tokenizer has {len(known)} whole words to search among, fewer than a "
                f"prompt's {attack.length}: give a shorter --length"
            )
        self.vocabulary = torch.tensor(known)

    def attempts(
        self,
        score: Score,
        limit: float,
        phrases: Sequence[str],
        *,
        seed: int,
        advance: Callable[[int], None] = lambda _searches: None,
    ) -> Iterator[Attempt]:
        """The results of all searches against a guard that fires over `limit`.

        Every second one starts at one of the `phrases`, followed by random words; the others at
        random words alone.
        """
        generator = torch.Generator().manual_seed(seed)
        networks = [*self.image_model.family.encoders.values(), self.image_model.family.denoiser]
        objective = _Evasion(self, score, limit)
        with frozen(networks):
            found = []
            for number in range(self.attack.prompts):
                phrase = phrases[self._random(len(phrases), generator)] if number % 2 else ""
                start = self.start(phrase, generator)
                found.append(self._swapped(objective, start, generator))
                advance(1)
            if found:
                yield from self._judged(score, *typed(self.tokenizer, torch.stack(found)))
            if self.attack.words:
                yield from self._learned(objective, score, phrases, generator)
                advance(self.attack.words)

    def start(self, phrase: str, generator: torch.Generator) -> Tensor:
        """The tokens of a phrase, filled with random words or cut to the length of a prompt."""
        given = self.tokenizer(phrase, add_special_tokens=False).input_ids if phrase else []
        given = torch.tensor(list(given)[: self.attack.length], dtype=torch.long)
        return torch.cat([given, self.random(self.attack.length - len(given), generator)])

    def random(self, count: int, generator: torch.Generator) -> Tensor:
        """Random words, by their tokens."""
        return self.vocabulary[torch.randint(len(self.vocabulary), (count,), generator=generator)]

    def _random(self, count: int, generator: torch.Generator) -> int:
        return int(torch.randint(count, (), generator=generator))

    def _swapped(self, objective: _Evasion, start: Tensor, generator: torch.Generator) -> Tensor:
        tokens = start
        for candidate in greedy_swaps(
            start,
            self.vocabulary,
            objective,
            steps=self.attack.steps,
            candidates=self.attack.candidates,
            top=self.attack.top,
            generator=generator,
        ):
            tokens = candidate.content
            if candidate.loss == 0.0:
                break
        return tokens

    def _judged(
        self, score: Score, texts: Sequence[str], can_be_typed: Tensor
    ) -> Iterator[Attempt]:
        text = self.image_model.encode(texts)
        scores, alike = score(text).tolist(), self.likeness(text).tolist()
        for row, (prompt, possible) in enumerate(zip(texts, can_be_typed.tolist(), strict=True)):
            if possible:
                yield Attempt(prompt, alike[row], scores[row])

    def _learned(
        self,
        objective: _Evasion,
        score: Score,
        phrases: Sequence[str],
        generator: torch.Generator,
    ) -> Iterator[Attempt]:
        """All words at once: their losses do not depend on each other."""
        count, size = self.attack.words, self.attack.vectors
        chosen = [phrases[self._random(len(phrases), generator)] for _ in range(count)]
        starts = [self.start(phrase, generator)[:size] for phrase in chosen]
        vectors = self.table[torch.stack(starts).to(self.table.device)].float().clone()
        scale = float(vectors.square().mean().sqrt())
        optimiser = torch.optim.Adam([vectors.requires_grad_()], lr=self.attack.rate * scale)
        with torch.enable_grad():
            for _ in range(self.attack.steps):
                loss = objective.of(self.encoded(vectors)).sum()
                (vectors.grad,) = torch.autograd.grad(loss, vectors)
                optimiser.step()
        vectors = vectors.detach()
        text = learned_conditioning(self.image_model, list(vectors))
        found = zip(vectors.cpu(), self.likeness(text).tolist(), score(text).tolist(), strict=True)
        for word, alike, scored in found:
            yield Attempt(WORD, alike, scored, word)

    def encoded(self, vectors: Tensor) -> Conditioning:
        """The conditionings of words of these `vectors [words, vectors, width]`, differentiable."""
        learned = [{WORD: word} for word in vectors]
        return self.image_model.family.encode([WORD] * len(learned), learned)


class _Evasion:
    """The loss of a search, as an objective of `greedy_swaps`."""

    def __init__(self, attacker: Attacker, score: Score, limit: float) -> None:
        self._attacker, self._score, self._limit = attacker, score, limit

    def renew(self, step: int) -> None:
        """Nothing: the views of the likeness stay."""

    def gradient(self, content: Tensor) -> Tensor:
        table = self._attacker.table
        vectors = table[content.to(table.device)].float().clone().requires_grad_()
        with torch.enable_grad():
            loss = self.of(self._attacker.encoded(vectors[None])).sum()
            (slope,) = torch.autograd.grad(loss, vectors)
        # a token without finite vectors is in no vocabulary
        return (slope @ table.nan_to_num().float().T).cpu()

    @torch.no_grad()
    def losses(self, candidates: Tensor) -> Tensor:
        texts, can_be_typed = typed(self._attacker.tokenizer, candidates)
        losses = self.of(self._attacker.image_model.family.encode(texts))
        return losses.cpu().where(can_be_typed, torch.inf)

    def of(self, text: Conditioning) -> Tensor:
        """`[rows]`."""
        missing = (GOAL - self._attacker.likeness.differentiable(text)).clamp(min=0).cpu()
        over = self._score(text.map(Tensor.cpu)) - self._limit + MARGIN
        return missing + self._attacker.attack.evade * over.clamp(min=0)


@torch.no_grad()
def learned_conditioning(image_model: ImageModel, vectors: Sequence[Tensor]) -> Conditioning:
    """The conditionings of learned words, one row each, on the CPU."""
    rows = [image_model.family.encode([WORD], [{WORD: word}]) for word in vectors]
    return concatenated([row.map(Tensor.cpu) for row in rows])
