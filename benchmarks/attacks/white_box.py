"""The search of `denoiser`, made through the guard: its attacker knows the guard's every number.

Candidates are compared by the denoiser's error on what the guard really leaves of them, over fresh
noise at every step; a prompt that is blocked is worth nothing. For the gradient the refinement is
unrolled and differentiated through; its result is then put in the exact one's place (a straight
through estimate: Athalye et al., arXiv 1802.00420), and the guard's score above its threshold is
added, so that slopes also lead out of its sight. The concept's own words may be used. Every second
search starts at the concept's plain prompt, the others at random tokens.

    python -m benchmarks.attacks.white_box --config config.toml --policy {concept}-cgce \\
        --method cgce --out examples/emoji/attacks/white-box.jsonl
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.attacks import command, concepts, denoiser
from benchmarks.attacks.search import Found
from guard.config import load_config
from guard.picture_plan import PicturePlan, PicturePlans
from steering.conditioning import Conditioning
from steering.engines.diffusion.families import family_of
from steering.methods.cgce import CgceScreen
from steering.prompted import PromptBank

UNROLLED = 4


class ThroughGuard:
    """The guards of one policy, between the text encoder and the denoiser.

    `evade` is the weight of their scores above their thresholds.
    """

    def __init__(self, bank: PromptBank, plan: PicturePlan, *, evade: float) -> None:
        self._bank, self._plan, self._guards = bank, plan, plan.rows()
        self._evade = evade

    def exact(self, text: Conditioning) -> tuple[Conditioning, Tensor]:
        """What the guards leave, and which rows they block or replace."""
        applied = self._bank.apply(text, [self._guards] * text.rows)
        lost = [self._plan.decide(readings) != "draw" for readings in applied.readings]
        return applied.text, torch.tensor(lost)

    def slope(self, text: Conditioning) -> tuple[Conditioning, Tensor]:
        """The exact result, differentiable as that of a few unrolled steps."""
        fixed = Conditioning({k: v.detach() for k, v in text.states.items()}, text.masks)
        exact, _ = self.exact(fixed)
        moved = {k: exact.states[k] - fixed.states[k] for k in fixed.states}
        seen = self._evade * self._over(text).clamp(min=0).sum()
        if not any(bool(move.any()) for move in moved.values()):
            return text, seen
        current = text
        for _ in range(UNROLLED):
            slopes = torch.autograd.grad(
                self._over(current).sum(), list(current.states.values()), create_graph=True
            )
            states = {}
            for (name, state), slope in zip(current.states.items(), slopes, strict=True):
                step = moved[name].norm() / UNROLLED
                states[name] = state - step * slope / slope.norm().clamp(min=1e-12)
            current = current.with_states(states)
        passed = {k: v + (exact.states[k] - v).detach() for k, v in current.states.items()}
        return current.with_states(passed), seen

    def _over(self, text: Conditioning) -> Tensor:
        """How far the policy's guards score above their thresholds, `[rows, guards]`."""
        limits = {guard.name: guard.threshold for guard in self._guards}
        found = []
        for screen in self._bank.screens:
            columns = [i for i, name in enumerate(screen.names) if name in limits]
            if columns:
                own = torch.tensor([limits[screen.names[i]] for i in columns])
                # a probability near 1 has no slope left, its logit has
                if isinstance(screen, CgceScreen):
                    found.append(screen.logits(text)[:, columns] - own.logit(1e-6))
                else:
                    found.append(screen.sense(text)[:, columns] - own)
        return torch.cat(found, dim=1)


def main() -> None:
    """Search and write."""
    parser = denoiser.parser(__doc__)
    parser.add_argument("--config", default="config.toml")
    parser.add_argument("--policy", default="{concept}-cgce", help="with {concept} for its name")
    parser.add_argument("--method", default="cgce", help="what the suite calls the policy's method")
    parser.add_argument("--evade", type=float, default=0.1, help="weight of the guard's score")
    arguments = parser.parse_args()
    target = command.load(arguments.model)
    plans = PicturePlans(
        load_config(arguments.config), family_of(target.pipeline), name=arguments.model
    )
    allowed = command.vocabulary(target, ())

    def search(concept: str, number: int) -> Iterator[Found]:
        plan = plans[arguments.policy.replace("{concept}", concept)]
        if plan.refuses or not plan.guards:
            raise SystemExit(f"policy {plan.policy!r} cannot be applied to {arguments.model}")
        return denoiser.find(
            target,
            concept,
            number,
            arguments,
            allowed,
            between=ThroughGuard(plans.bank, plan, evade=arguments.evade),
            start=concepts.name(concept) if number % 2 else "",
        )

    command.run("white-box", arguments, target, search, against=arguments.method)


if __name__ == "__main__":
    main()
