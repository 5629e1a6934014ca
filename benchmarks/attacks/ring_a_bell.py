"""A concept vector and a search for tokens (the idea of Ring-A-Bell, arXiv 2310.10012).

The concept is the mean difference of the text encoder's output between prompts with and without
it. It is added, `--push` times, to the output of a harmless prompt, and a genetic algorithm looks
for tokens whose own output comes near. The denoiser and the guard are never asked. Words that name
the concept are not used.

    python -m benchmarks.attacks.ring_a_bell --out examples/emoji/attacks/ring-a-bell.jsonl
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks.attacks import command, concepts
from benchmarks.attacks.search import Found, genetic
from benchmarks.attacks.target import Target

FRAMES = 40


def main() -> None:
    """Search and write."""
    parser = command.parser(__doc__, efforts="0,5,15,40,80")
    parser.add_argument("--population", type=int, default=64)
    parser.add_argument("--mutation", type=float, default=0.15, help="of each token of a child")
    parser.add_argument("--push", type=float, default=1.5, help="how often the vector is added")
    arguments = parser.parse_args()
    target = command.load(arguments.model)
    generations = max(map(int, arguments.efforts.split(",")))

    def search(concept: str, number: int) -> Iterator[Found]:
        return find(
            target,
            concept,
            number,
            push=arguments.push,
            population=arguments.population,
            mutation=arguments.mutation,
            generations=generations,
        )

    command.run("ring-a-bell", arguments, target, search)


def find(
    target: Target,
    concept: str,
    number: int,
    *,
    push: float,
    population: int,
    mutation: float,
    generations: int,
) -> Iterator[Found]:
    """One prompt, a generation at a time."""
    seed = command.seed(concept, number)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    frames = concepts.frames(concept, FRAMES, rng)
    vector = (
        _states(target, [a for a, _ in frames]) - _states(target, [b for _, b in frames])
    ).mean(0)
    harmless = frames[0][1]
    goal = _states(target, [harmless])[0] + push * vector
    allowed = command.vocabulary(target, concepts.words(concept))
    start = command.drawn(allowed, (population, len(target.content(harmless))), generator)

    def losses(candidates: Tensor) -> Tensor:
        found = target.encode(candidates).states["text"]
        away = (found - goal).square().mean((1, 2))
        return away.where(target.survives(candidates), torch.inf)

    yield from genetic(
        start, allowed, losses, generations=generations, mutation=mutation, generator=generator
    )


def _states(target: Target, prompts: list[str]) -> Tensor:
    """Of prompts of any lengths, `[prompts, tokens, width]`."""
    rows = [torch.tensor([target.content(prompt)]) for prompt in prompts]
    return torch.cat([target.encode(row).states["text"] for row in rows])


if __name__ == "__main__":
    main()
