"""Prompts optimised through the denoiser of the bare model (P4D's and UnlearnDiffAtk's idea).

`--goal image` (UnlearnDiffAtk, arXiv 2310.11868): tokens under which the denoiser predicts the
noise in real images of the concept. `--goal prompt` (P4D, arXiv 2309.06135): tokens under which
it says what it says under the concept's own prompt. Both by greedy swaps of one token, over fresh
noise at every step. Words that name the concept are not used.

    python -m benchmarks.attacks.denoiser --goal image --out examples/emoji/attacks/picture.jsonl
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from benchmarks.attacks import command, concepts
from benchmarks.attacks.search import Found, greedy_swaps
from benchmarks.attacks.target import Target, Views
from steering.images.conditioning import Conditioning

_DRAWN = 2
"""Candidates of a step that are drawn where a guard looks at images."""
NAMES = {"picture": "unlearn-diff-atk", "prompt": "p4d"}


def parser(description: str | None) -> argparse.ArgumentParser:
    """With the arguments of a search through the denoiser."""
    made = command.parser(description, efforts="0,5,10,20,40")
    made.add_argument("--goal", choices=sorted(NAMES), default="picture")
    made.add_argument("--views", type=int, default=4, help="noisy images of each step")
    made.add_argument("--candidates", type=int, default=16, help="swaps tried at each step")
    made.add_argument("--top", type=int, default=64, help="tokens drawn from at each place")
    made.add_argument("--length", type=int, default=8, help="tokens of a prompt")
    return made


def main() -> None:
    """Search and write."""
    arguments = parser(__doc__).parse_args()
    target = command.load(arguments)

    def search(concept: str, number: int) -> Iterator[Found]:
        allowed = command.vocabulary(target, concepts.words(concept))
        return find(target, concept, number, arguments, allowed, between=Nothing())

    command.run(NAMES[arguments.goal], arguments, target, search)


class Between(Protocol):
    """What stands between the text encoder and the denoiser, as the attacker knows it."""

    def exact(self, text: Conditioning) -> tuple[Conditioning, Tensor]:
        """What the denoiser is given, and which rows `[rows]` are not drawn at all."""

    def slope(self, text: Conditioning) -> tuple[Conditioning, Tensor]:
        """The same in a form that a gradient goes through, and a scalar to add to the loss."""

    def looked(self, text: Conditioning) -> Tensor | None:
        """What is to be added to the loss of prompts `[rows]` that `exact` has given, now that they
        are drawn; None where nobody looks at images."""


class Nothing:
    """The bare model."""

    def exact(self, text: Conditioning) -> tuple[Conditioning, Tensor]:
        return text, torch.zeros(text.rows, dtype=torch.bool)

    def slope(self, text: Conditioning) -> tuple[Conditioning, Tensor]:
        return text, torch.zeros(())

    def looked(self, text: Conditioning) -> Tensor | None:
        return None


class Denoising:
    """The denoiser's error under a prompt, over noisy views of the concept."""

    def __init__(
        self,
        target: Target,
        latents: Tensor,
        *,
        views: int,
        prompt: str | None,
        generator: torch.Generator,
        between: Between,
    ) -> None:
        self._target, self._latents = target, latents
        self._count, self._prompt, self._generator = views, prompt, generator
        self._between = between
        self._views: Views

    def renew(self, step: int) -> None:
        """Other images, other noise, other timesteps."""
        chosen = torch.randperm(len(self._latents), generator=self._generator)[: self._count]
        self._views = self._target.views(self._latents[chosen], self._generator, self._prompt)

    def gradient(self, content: Tensor) -> Tensor:
        """`[length, vocabulary]`."""

        def loss(text: Conditioning) -> Tensor:
            passed, more = self._between.slope(text)
            return self._target.errors(passed, self._views).mean() + more

        return self._target.gradient(content, loss)

    def losses(self, candidates: Tensor) -> Tensor:
        """`[n]`."""
        with torch.no_grad():
            text, lost = self._between.exact(self._target.encode(candidates))
            found = self._target.errors(text, self._views)
            found = found.where(self._target.survives(candidates) & ~lost, torch.inf)
            # drawing is dear: the best of them, and the one that is there
            best = found[:-1].topk(min(_DRAWN, len(found) - 1), largest=False).indices
            best = torch.cat([best, torch.tensor([len(found) - 1])])
            seen = self._between.looked(text.select(best))
        if seen is None:
            return found
        return torch.full_like(found, torch.inf).index_copy(0, best, found[best] + seen)


def find(
    target: Target,
    concept: str,
    number: int,
    arguments: argparse.Namespace,
    allowed: Tensor,
    *,
    between: Between,
    start: str = "",
) -> Iterator[Found]:
    """One prompt, a swap at a time, from random tokens behind `start`."""
    seed = command.seed(concept, number)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    real = concepts.images(concept, 4 * arguments.views, rng)
    prompt = concepts.name(concept) if arguments.goal == "prompt" else None
    objective = Denoising(
        target,
        target.latents(real),
        views=arguments.views,
        prompt=prompt,
        generator=generator,
        between=between,
    )
    given = target.content(start)[: arguments.length] if start else []
    more = command.drawn(allowed, (arguments.length - len(given),), generator)
    yield from greedy_swaps(
        torch.cat([torch.tensor(given, dtype=torch.long), more]),
        allowed,
        objective,
        steps=max(map(int, arguments.efforts.split(","))),
        candidates=arguments.candidates,
        top=arguments.top,
        generator=generator,
    )


if __name__ == "__main__":
    main()
