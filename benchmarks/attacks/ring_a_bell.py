"""A concept vector and a search for tokens (the idea of Ring-A-Bell, arXiv 2310.10012).

The concept is the mean difference of the text encoder's output between prompts with and without
it. The search adds it, `--push` times, to the output of a harmless prompt, and looks for tokens
with a similar output. It never runs the denoiser or the guard, and uses no words that name the
concept. The paper searches with a genetic algorithm; greedy swaps, guided by the encoder's
gradient, get much nearer with the same number of queries.

    python -m benchmarks.attacks.ring_a_bell --out examples/emoji/attacks/ring-a-bell.jsonl
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.attacks import command, concepts
from benchmarks.attacks.target import Target
from guard.fitting.prompts.swaps import Candidate, greedy_swaps

FRAMES = 40


def main() -> None:
    """Search and write."""
    parser = command.option_parser(__doc__, efforts="0,5,10,20,40")
    parser.add_argument("--candidates", type=int, default=48, help="swaps tried at each step")
    parser.add_argument(
        "--top", type=int, default=128, help="tokens to sample from at each position"
    )
    parser.add_argument("--push", type=float, default=1.5, help="factor of the concept vector")
    arguments = parser.parse_args()
    target = command.load(arguments)

    def search(concept: str, number: int) -> Iterator[Candidate]:
        return find(target, concept, number, arguments)

    command.run("ring-a-bell", arguments, target, search)


class EmbeddingDistance:
    """Mean squared distance of a prompt's encoding from `goal [tokens, width]`."""

    def __init__(self, target: Target, goal: Tensor) -> None:
        self._target, self._goal = target, goal

    def renew(self, step: int) -> None:
        """Nothing: the objective has no noise."""

    def gradient(self, content: Tensor) -> Tensor:
        """`[length, vocabulary]`."""
        return self._target.gradient(
            content, lambda text: self._distance(text.states["text"]).sum()
        )

    def losses(self, candidates: Tensor) -> Tensor:
        """`[n]`."""
        distance = self._distance(self._target.encode(candidates).states["text"])
        return distance.where(self._target.survives(candidates), torch.inf)

    def _distance(self, states: Tensor) -> Tensor:
        return (states - self._goal).square().mean((1, 2))


def find(
    target: Target, concept: str, number: int, arguments: argparse.Namespace
) -> Iterator[Candidate]:
    """One prompt, a swap at a time."""
    seed = command.seed(concept, number)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    frames = concepts.frames(concept, FRAMES, rng)
    with_concept, without = (_states(target, prompts) for prompts in zip(*frames, strict=True))
    harmless = frames[0][1]
    goal = without[0] + arguments.push * (with_concept - without).mean(0)
    allowed = command.vocabulary(target, concepts.words(concept))
    yield from greedy_swaps(
        command.random_tokens(allowed, (len(target.content(harmless)),), generator),
        allowed,
        EmbeddingDistance(target, goal),
        steps=max(map(int, arguments.efforts.split(","))),
        candidates=arguments.candidates,
        top=arguments.top,
        generator=generator,
    )


def _states(target: Target, prompts: Sequence[str]) -> Tensor:
    """Encodings of prompts of any lengths, `[prompts, tokens, width]`."""
    rows = [torch.tensor([target.content(prompt)]) for prompt in prompts]
    return torch.cat([target.encode(row).states["text"] for row in rows])


if __name__ == "__main__":
    main()
