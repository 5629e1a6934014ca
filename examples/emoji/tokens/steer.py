"""A guard at the hidden seam of the autoregressive model: `python -m examples.emoji.tokens.steer`.

Its gate reads the prompt, as those of all language models do. Its direction after each layer is
the mean, over pairs of captions and the tokens of their images, of `h(instead) - h(asked)` for the
same past of the image; it is added along the first tokens of an image, or along all of them. After
which layers, along how many tokens and how much is chosen by the first judge on other captions.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from examples.emoji.tokens.pairs import (
    Twins,
    captions_with,
    drawn_pairs,
    forget_rows,
    retain_rows,
)
from guard.evaluation.images.judge import Judge
from guard.fitting.gated.artifacts import gated_artifact
from guard.fitting.gated.token_gate import TokenGate
from guard.fitting.steering.gate_search import GateRates
from guard.models.token_images import TokenImageModel
from guard.reporting.progress import stages
from steering.hidden.bank import HiddenBank
from steering.hidden.rows import RowGuard
from steering.methods.steer import SteerGuard, bank_of

JUDGE = Path("examples/emoji/judge-first.onnx")
RATES = GateRates(far=0.02, near=0.1)
PAIRS, TRIED = 48, 32
STRENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class Trial:
    """`shown` is the share of images that show the concept, `kept` that of the other objects asked
    for that are shown. No layers: the bare model."""

    layers: tuple[int, ...]
    steps: int
    strength: float
    shown: float
    kept: float

    @property
    def faults(self) -> float:
        return self.shown + 1 - self.kept


def directions(model: TokenImageModel, concept: str, count: int) -> Tensor:
    """`[layers, width]`, one after each decoder layer."""
    chat = model.chat
    pairs = drawn_pairs(model, [*captions_with(concept, count, 2)])
    sequences = [
        [*prompt, *pair.image[:-1]] for pair in pairs for prompt in (pair.instead, pair.asked)
    ]
    total = torch.zeros(chat.depth, chat.width)
    for number, states in chat.states(sequences, range(chat.depth)):
        mean = states[-model.images.count :].mean(0)
        total += mean if number % 2 == 0 else -mean
    return total / len(pairs)


class Trials:
    """Trials of one concept's directions, on captions that no direction was made of."""

    def __init__(self, model: TokenImageModel, concept: str, gate: TokenGate, judge: Judge) -> None:
        self._model, self._concept, self._gate, self._judge = model, concept, gate, judge
        self._twins: Sequence[Twins] = [*captions_with(concept, TRIED, 3)]
        self._prompts = [model.chat.prompt(twins.asked) for twins in self._twins]

    def bare(self) -> Trial:
        return Trial((), 0, 0.0, *self._judged(HiddenBank(), ()))

    def steered(self, away: Tensor, layers: tuple[int, ...], steps: int, strength: float) -> Trial:
        guard = SteerGuard(
            "tried",
            self._gate.sense_layers,
            self._gate.gates,
            layers,
            away[list(layers)].expand(steps, -1, -1).contiguous(),
            self._gate.pool,
        )
        row = RowGuard("tried", -math.inf, strength)
        return Trial(layers, steps, strength, *self._judged(bank_of([guard]), (row,)))

    def _judged(self, bank: HiddenBank, guards: Sequence[RowGuard]) -> tuple[float, float]:
        drawn = self._model.draw(
            self._prompts, range(TRIED), bank=bank, guards=[guards] * len(self._prompts)
        )
        views = self._judge.views(np.stack(self._model.pixels(drawn)))
        shown = [view.shows(self._concept) for view in views]
        kept = [
            view.shows(other)
            for view, twins in zip(views, self._twins, strict=True)
            for other in twins.others
        ]
        return float(np.mean(shown)), float(np.mean(kept))


def fit(model: TokenImageModel, concept: str, out: Path) -> None:
    """Fit the guard and write its artifact to `out`, and all trials beside it."""
    chat, count = model.chat, model.images.count
    with stages() as progress:
        gate = TokenGate.fitted(
            chat, forget_rows(concept), retain_rows(concept), RATES, progress=progress
        )
    away = directions(model, concept, PAIRS)
    trials = Trials(model, concept, gate, Judge(JUDGE))
    bare = trials.bare()
    first = max(gate.sense_layers)
    layers = ((first,), (chat.depth - 1,), tuple(range(first, chat.depth)))
    found = [
        trials.steered(away, *setting)
        for setting in itertools.product(layers, (count // 4, count), STRENGTHS)
    ]
    best = min(found, key=lambda trial: trial.faults)
    settings = {
        "act_layers": list(best.layers),
        "rest": best.steps,
        "schedule": [1.0] * best.steps,
        "recheck": None,
        "strength": best.strength,
    }
    calibration = gate.calibration | {"trial_leak_rate": best.shown, "trial_kept": best.kept}
    tensors = {"directions": away[list(best.layers)].numpy()}
    artifact = gated_artifact(
        "steer", chat, gate, settings, tensors, calibration, concept=f"object/{concept}"
    )
    artifact.save(out)
    report = {"calibration": calibration, "trials": [asdict(trial) for trial in (bare, *found)]}
    out.with_suffix(".report.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")


def main(
    concept: Annotated[str, typer.Argument(help="One of concepts.json.")] = "knife",
    model: str = "emoji-tokens",
    out: Path = Path("build/emoji-tokens/steer.safetensors"),
) -> None:
    """Fit a steering guard for CONCEPT on the autoregressive model."""
    out.parent.mkdir(parents=True, exist_ok=True)
    fit(TokenImageModel.load(model, device="cpu"), concept, out)
    print(f"wrote {out}")


if __name__ == "__main__":
    typer.run(main)
