"""The search of `denoiser` through the guard, by an attacker who knows all numbers of the guard.

Candidates are compared by the error of the denoiser on the refined prompt, under new noise at every
step; a blocked prompt has infinite loss. Gradients pass through every step of the refinement, and
the score of the guard above its threshold is added to the loss, so that they also lead away from
the guard. Where guards inspect images, images of the best candidates of a step are generated
through the guards of the prompt, and the scores that the others have for the finished latents,
above their thresholds, are added to the losses; gradients pass through the estimate of the image at
the first step. What overlays of the denoiser and IRECE write is left out: their gate, or their
score, is what is evaded. The words of the concept may be used. Every second search starts at the
plain prompt of the concept, the others at random tokens.

    python -m benchmarks.attacks.white_box --config config.toml --policy {concept}-cgce \\
        --method cgce --out examples/emoji/attacks/white-box.jsonl
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.attacks import command, concepts, denoiser
from benchmarks.attacks.generating import EmbeddingGenerator
from guard.config.schema import load_config
from guard.evaluation.m_erasure.guarded_loss import gradients_of, limits_of, through_guards
from guard.fitting.prompts.swaps import Candidate
from guard.plans.images import ImagePlan, ImagePlans
from steering.engines.diffusion.families import Family, family_of
from steering.images.conditioning import Conditioning
from steering.images.embedding import EmbeddingBank

STEPS, GUIDANCE = 4, 3.0
"""Of images for a search: few steps already show what an image will be."""
SEEDS = 2
"""Images of a candidate."""


class OutputGuardLoss:
    """Scores of the guards of a plan that inspect images, as an attacker computes them.

    Every call uses new seeds, since the prompt must work with other seeds too.
    """

    def __init__(self, plans: ImagePlans, plan: ImagePlan, family: Family, seed: int) -> None:
        carried = {row.name: row for row in plan.rows()}
        self._output = [
            (stack, limits_of(stack.names, carried)) for stack in plans.stacks.output.stacks
        ]
        self._latents = [(stack, limits_of(stack.names, carried)) for stack in plans.stacks.latents]
        self._generator = EmbeddingGenerator(family, steps=STEPS, guidance=GUIDANCE)
        self._family = family
        self._seeds = iter(range(1000 * seed, 2**31, SEEDS))

    def of_images(self, text: Conditioning) -> Tensor:
        """Mean score above the thresholds of generated images, `[rows]`."""
        return self._excess(self._generator.finished(text, self._next_seeds()))

    def of_first_guess(self, text: Conditioning) -> Tensor:
        """The same of the estimates at the first step, `[rows]`; differentiable."""
        return self._excess(self._generator.first_guess(text, self._next_seeds()))

    def _next_seeds(self) -> range:
        first = next(self._seeds)
        return range(first, first + SEEDS)

    def _excess(self, latents: Tensor) -> Tensor:
        whole = self._family.unpacked(latents)
        above = [
            stack.sense(whole, [column])[:, 0] - limit
            for stack, limits in self._output
            for column, limit in limits.items()
        ]
        above += [
            stack.sense(whole, [column])[0][:, 0] - limit
            for stack, limits in self._latents
            for column, limit in limits.items()
        ]
        return torch.stack(above).amax(0).clamp(min=0).view(-1, SEEDS).mean(1)


class GuardDefense:
    """The guards of one policy between the text encoder and the denoiser.

    `evade` is the weight of their scores above their thresholds.
    """

    def __init__(
        self,
        bank: EmbeddingBank,
        plan: ImagePlan,
        *,
        evade: float,
        output_loss: OutputGuardLoss | None = None,
    ) -> None:
        self._bank, self._plan, self._guards = bank, plan, plan.prompt_rows()
        self._evade, self._output_loss = evade, output_loss

    def exact(self, text: Conditioning) -> tuple[Conditioning, Tensor]:
        """The refined conditioning, and which rows the guards block or replace."""
        applied = self._bank.apply(text, [self._guards] * text.rows)
        blocked = [self._plan.decide(readings) != "generate" for readings in applied.readings]
        return applied.text, torch.tensor(blocked)

    def differentiable(self, text: Conditioning) -> tuple[Conditioning, Tensor]:
        """The same, differentiable, and the weighted scores above the thresholds."""
        text, excess = through_guards(self._bank, self._guards, text, gradients_of(self._plan))
        total = excess.sum()
        if self._output_loss is not None:
            total = total + self._output_loss.of_first_guess(text).mean()
        return text, self._evade * total

    def image_loss(self, text: Conditioning) -> Tensor | None:
        """Weighted scores above the thresholds of the images of refined conditionings."""
        if self._output_loss is None:
            return None
        return self._evade * self._output_loss.of_images(text)


def main() -> None:
    """Search and write."""
    parser = denoiser.option_parser(__doc__)
    parser.add_argument("--config", default="config.toml")
    parser.add_argument(
        "--policy", default="{concept}-cgce", help="{concept} stands for the concept"
    )
    parser.add_argument("--method", default="cgce", help="the policy's method in the suite")
    parser.add_argument("--evade", type=float, default=0.1, help="weight of the guard's score")
    arguments = parser.parse_args()
    target = command.load(arguments)
    family = family_of(target.pipeline)
    plans = ImagePlans(load_config(arguments.config), family, name=arguments.model)
    allowed = command.vocabulary(target, ())

    def search(concept: str, number: int) -> Iterator[Candidate]:
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
            defense=GuardDefense(
                plans.stacks.prompts,
                plan,
                evade=arguments.evade,
                output_loss=OutputGuardLoss(plans, plan, family, seed)
                if plan.inspects_images
                else None,
            ),
            start=concepts.name(concept) if number % 2 else "",
        )

    command.run("white-box", arguments, target, search, against=arguments.method)


if __name__ == "__main__":
    main()
