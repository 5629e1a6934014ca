"""The search of `denoiser`, made through the guard: its attacker knows the guard's every number.

Candidates are compared by the denoiser's error on what the guard really leaves of them, over fresh
noise at every step; a prompt that is blocked is worth nothing. Slopes go through every step of the
refinement, and the guard's score above its threshold is added, so that they also lead out of its
sight. Where guards look at images, the best candidates of a step are drawn through the guard, and
what these guards say above their thresholds is added to their losses; slopes go through what the
first step takes the image for. The concept's own words may be used. Every second
search starts at the concept's plain prompt, the others at random tokens.

    python -m benchmarks.attacks.white_box --config config.toml --policy {concept}-cgce \\
        --method cgce --out examples/emoji/attacks/white-box.jsonl
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.attacks import command, concepts, denoiser
from benchmarks.attacks.generating import EmbeddingGenerator
from benchmarks.attacks.search import Found
from guard.config.schema import load_config
from guard.evaluation.m_erasure.guarded_loss import gradients_of, through_guards
from guard.plans.images import ImagePlan, ImagePlans
from steering.engines.diffusion.families import Family, family_of
from steering.images.conditioning import Conditioning
from steering.images.embedding import EmbeddingBank

STEPS, GUIDANCE = 4, 3.0
"""Of what is drawn for a search: few steps show already what it will be."""
SEEDS = 2
"""Images of a candidate that are drawn."""


class Onlookers:
    """The guards of a plan that look at images, as an attacker knows them: over fresh seeds every
    time, since what is found must hold for others too."""

    def __init__(self, plans: ImagePlans, plan: ImagePlan, family: Family, seed: int) -> None:
        self._screens = plans.stacks.output.stacks
        self._limits = {row.name: row.threshold for row in plan.rows()}
        self._drawing = EmbeddingGenerator(family, steps=STEPS, guidance=GUIDANCE)
        self._family = family
        self._seeds = iter(range(1000 * seed, 2**31, SEEDS))

    def over(self, text: Conditioning) -> Tensor:
        """`[rows]`: what they say above their thresholds of images that are drawn."""
        return self._over(self._drawing.finished(text, self._drawn())).view(-1, SEEDS).mean(1)

    def guess(self, text: Conditioning) -> Tensor:
        """The same of what the first step takes the images for: differentiable."""
        return self._over(self._drawing.first_guess(text, self._drawn())).view(-1, SEEDS).mean(1)

    def _drawn(self) -> range:
        first = next(self._seeds)
        return range(first, first + SEEDS)

    def _over(self, latents: Tensor) -> Tensor:
        whole = self._family.unpacked(latents)
        found = [
            screen.sense(whole, [column])[:, 0] - self._limits[name]
            for screen in self._screens
            for column, name in enumerate(screen.names)
            if name in self._limits
        ]
        return torch.stack(found).amax(0).clamp(min=0)


class ThroughGuard:
    """The guards of one policy, between the text encoder and the denoiser.

    `evade` is the weight of their scores above their thresholds.
    """

    def __init__(
        self,
        bank: EmbeddingBank,
        plan: ImagePlan,
        *,
        evade: float,
        onlookers: Onlookers | None = None,
    ) -> None:
        self._bank, self._plan, self._guards = bank, plan, plan.prompt_rows()
        self._evade, self._onlookers = evade, onlookers

    def exact(self, text: Conditioning) -> tuple[Conditioning, Tensor]:
        """What the guards leave, and which rows they block or replace."""
        applied = self._bank.apply(text, [self._guards] * text.rows)
        lost = [self._plan.decide(readings) != "draw" for readings in applied.readings]
        return applied.text, torch.tensor(lost)

    def slope(self, text: Conditioning) -> tuple[Conditioning, Tensor]:
        """The same, differentiable, and what the guards say above their thresholds."""
        text, seen = through_guards(self._bank, self._guards, text, gradients_of(self._plan))
        total = seen.sum()
        if self._onlookers is not None:
            total = total + self._onlookers.guess(text).mean()
        return text, self._evade * total

    def looked(self, text: Conditioning) -> Tensor | None:
        """Drawn through the guard: what its guards of images say above their thresholds."""
        return None if self._onlookers is None else self._evade * self._onlookers.over(text)


def main() -> None:
    """Search and write."""
    parser = denoiser.parser(__doc__)
    parser.add_argument("--config", default="config.toml")
    parser.add_argument("--policy", default="{concept}-cgce", help="with {concept} for its name")
    parser.add_argument("--method", default="cgce", help="what the suite calls the policy's method")
    parser.add_argument("--evade", type=float, default=0.1, help="weight of the guard's score")
    arguments = parser.parse_args()
    target = command.load(arguments)
    family = family_of(target.pipeline)
    plans = ImagePlans(load_config(arguments.config), family, name=arguments.model)
    allowed = command.vocabulary(target, ())

    def search(concept: str, number: int) -> Iterator[Found]:
        plan = plans[arguments.policy.replace("{concept}", concept)]
        if plan.refuses or not plan.guards:
            raise SystemExit(f"policy {plan.policy!r} cannot be applied to {arguments.model}")
        seed = command.seed(concept, number)
        return denoiser.find(
            target,
            concept,
            number,
            arguments,
            allowed,
            between=ThroughGuard(
                plans.stacks.prompts,
                plan,
                evade=arguments.evade,
                onlookers=Onlookers(plans, plan, family, seed) if plan.screens else None,
            ),
            start=concepts.name(concept) if number % 2 else "",
        )

    command.run("white-box", arguments, target, search, against=arguments.method)


if __name__ == "__main__":
    main()
