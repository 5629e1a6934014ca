"""Prompts optimised through the denoiser of the bare model (the idea of P4D and UnlearnDiffAtk).

`--goal image` (UnlearnDiffAtk, arXiv 2310.11868) searches tokens under which the denoiser predicts
the noise in real images of the concept; `--goal prompt` (P4D, arXiv 2309.06135) tokens under which
its prediction is that under the plain prompt of the concept. Both swap one token at a time
greedily, under new noise at every step, and use no words that name the concept.

    python -m benchmarks.attacks.denoiser --goal image --out
    examples/emoji/attacks/unlearn-diff-atk.jsonl
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from benchmarks.attacks import command, concepts
from benchmarks.attacks.target import Target, Views
from guard.fitting.prompts.swaps import Candidate, greedy_swaps
from steering.images.conditioning import Conditioning

_GENERATED = 2
"""Candidates of a step from which images are generated where a guard inspects images."""
NAMES = {"image": "unlearn-diff-atk", "prompt": "p4d"}
"""Names of the attacks by goal."""


def option_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options of a search through the denoiser."""
    parser = command.option_parser(description, efforts="0,5,10,20,40")
    parser.add_argument("--goal", type=_goal, choices=sorted(NAMES), default="image")
    parser.add_argument("--views", type=int, default=4, help="noisy images of each step")
    parser.add_argument("--candidates", type=int, default=16, help="swaps tried at each step")
    parser.add_argument(
        "--top", type=int, default=64, help="tokens to sample from at each position"
    )
    parser.add_argument("--length", type=int, default=8, help="tokens of a prompt")
    return parser


def _goal(name: str) -> str:
    # the name of this goal before images were called images everywhere
    return "image" if name == "picture" else name


def main() -> None:
    """Search and write."""
    arguments = option_parser(__doc__).parse_args()
    target = command.load(arguments)

    def search(concept: str, number: int) -> Iterator[Candidate]:
        allowed = command.vocabulary(target, concepts.words(concept))
        return find(target, concept, number, arguments, allowed, defense=NoDefense())

    command.run(NAMES[arguments.goal], arguments, target, search)


class Defense(Protocol):
    """Everything between the text encoder and the denoiser, as the attacker knows it."""

    def exact(self, text: Conditioning) -> tuple[Conditioning, Tensor]:
        """The input of the denoiser, and which rows `[rows]` are blocked."""

    def differentiable(self, text: Conditioning) -> tuple[Conditioning, Tensor]:
        """The same, differentiable, and a scalar to add to the loss."""

    def image_loss(self, text: Conditioning) -> Tensor | None:
        """Loss `[rows]` of the images of conditionings that `exact` gave; None without inspection
        of images."""


class NoDefense:
    """The bare model."""

    def exact(self, text: Conditioning) -> tuple[Conditioning, Tensor]:
        return text, torch.zeros(text.rows, dtype=torch.bool)

    def differentiable(self, text: Conditioning) -> tuple[Conditioning, Tensor]:
        return text, torch.zeros(())

    def image_loss(self, text: Conditioning) -> Tensor | None:
        return None


class DenoisingLoss:
    """The denoiser's error under a prompt, over noisy views of the concept."""

    def __init__(
        self,
        target: Target,
        latents: Tensor,
        *,
        views: int,
        prompt: str | None,
        generator: torch.Generator,
        defense: Defense,
    ) -> None:
        self._target, self._latents = target, latents
        self._count, self._prompt, self._generator = views, prompt, generator
        self._defense = defense
        self._views: Views

    def renew(self, step: int) -> None:
        """Choose other images, noise and timesteps."""
        chosen = torch.randperm(len(self._latents), generator=self._generator)[: self._count]
        self._views = self._target.views(self._latents[chosen], self._generator, self._prompt)

    def gradient(self, content: Tensor) -> Tensor:
        """`[length, vocabulary]`."""

        def loss(text: Conditioning) -> Tensor:
            passed, penalty = self._defense.differentiable(text)
            return self._target.errors(passed, self._views).mean() + penalty

        return self._target.gradient(content, loss)

    def losses(self, candidates: Tensor) -> Tensor:
        """`[n]`."""
        with torch.no_grad():
            text, blocked = self._defense.exact(self._target.encode(candidates))
            losses = self._target.errors(text, self._views)
            losses = losses.where(self._target.survives(candidates) & ~blocked, torch.inf)
            # images are expensive: only the best candidates, and the current sequence
            best = losses[:-1].topk(min(_GENERATED, len(losses) - 1), largest=False).indices
            best = torch.cat([best, torch.tensor([len(losses) - 1])])
            image_losses = self._defense.image_loss(text.select(best))
        if image_losses is None:
            return losses
        return torch.full_like(losses, torch.inf).index_copy(0, best, losses[best] + image_losses)


def find(
    target: Target,
    concept: str,
    number: int,
    arguments: argparse.Namespace,
    allowed: Tensor,
    *,
    defense: Defense,
    start: str = "",
) -> Iterator[Candidate]:
    """One prompt, a swap at a time, from random tokens behind `start`."""
    seed = command.seed(concept, number)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    real = concepts.images(concept, 4 * arguments.views, rng)
    prompt = concepts.name(concept) if arguments.goal == "prompt" else None
    objective = DenoisingLoss(
        target,
        target.latents(real),
        views=arguments.views,
        prompt=prompt,
        generator=generator,
        defense=defense,
    )
    given = target.content(start)[: arguments.length] if start else []
    filled = command.random_tokens(allowed, (arguments.length - len(given),), generator)
    yield from greedy_swaps(
        torch.cat([torch.tensor(given, dtype=torch.long), filled]),
        allowed,
        objective,
        steps=max(map(int, arguments.efforts.split(","))),
        candidates=arguments.candidates,
        top=arguments.top,
        generator=generator,
    )


if __name__ == "__main__":
    main()
