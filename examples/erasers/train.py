"""Small erasers of SmolLM2: `python -m examples.erasers.train NAME` goes on where its checkpoint
ends.

NAME is one of `ERASERS`. What it writes is what published erasers leave behind: an adapter as PEFT
saves it, or changed weights. With `--after FOLDER` it is trained on the model that the eraser in
that folder left. Needs `guard models add smollm2`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor

from examples.emoji.checkpoint import resume, save
from examples.erasers import natural_gradient
from examples.erasers.data import Batch, Data, read
from examples.erasers.differences import Differences
from examples.erasers.forwards import Forwards
from examples.erasers.losses import (
    bounded_forgetting,
    gradient_ascent,
    misdirection,
    negative_preference,
)
from guard.models.chat import TransformersChat
from guard.reporting.progress import stages

Loss = Callable[[Forwards, Batch, Batch], tuple[Tensor, float]]

HERE = Path(__file__).parent
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")
EVERY = 3
"""Steps between two checkpoints."""
FALLING = 0.3
BATCHES = 12
"""Of each kind, in one step of the natural gradient."""


@dataclass(frozen=True)
class Eraser:
    """What is trained, by which loss (None: natural gradient), and for how many steps.

    `until`: training ends where what the loss reports has reached it. `clip` is the longest that a
    gradient may be. With a `penalty` α the steps are those of plain proximal gradients, with
    α Σ sqrt(|A|² + |B|²) over decoder layers: Adam's, of the same size for every layer, would
    choose none. At a bound such steps go to and fro, so that the last ones become shorter.
    """

    loss: Loss | None
    names: Sequence[str]
    layers: range
    rank: int | None
    steps: int
    rate: float
    rows: int
    until: float | None = None
    clip: float = 1.0
    penalty: float = 0.0

    def optimizer(self, differences: Differences) -> torch.optim.Optimizer:
        parameters = differences.module.parameters()
        if self.penalty:
            return torch.optim.SGD(parameters, lr=self.rate)
        return torch.optim.AdamW(parameters, lr=self.rate, weight_decay=0.0)

    def rate_at(self, step: int) -> float:
        """With a penalty it falls to zero over the last share `FALLING` of the steps."""
        left = (self.steps - step) / (FALLING * self.steps)
        return self.rate * min(1.0, left) if self.penalty else self.rate


ERASERS = {
    "gradient-ascent": Eraser(
        gradient_ascent.loss, ALL, range(14, 24), 8, steps=12, rate=2e-3, rows=4, until=6.0
    ),
    "npo": Eraser(negative_preference.loss, ALL, range(14, 24), 8, steps=15, rate=2e-3, rows=4),
    # not layer 11, which writes the first token's outsized state: its gradient drowns all others
    "gs-lora": Eraser(
        bounded_forgetting.loss,
        FEED_FORWARD,
        range(12, 24),
        rank=8,
        steps=60,
        rate=5.0,
        rows=4,
        clip=0.2,
        penalty=0.03,
    ),
    "rmu": Eraser(misdirection.loss, ("down_proj",), range(10, 13), None, 20, rate=4e-3, rows=4),
    "k-fac": Eraser(None, ("down_proj",), range(10, 20), None, steps=2, rate=0.15, rows=4),
}


def train(name: str, source: str, prompts: Path, out: Path, after: Path | None = None) -> None:
    """Train an eraser and write it to the folder `out/NAME`; its task comes after that of the
    adapter in the folder `after`."""
    eraser = ERASERS[name]
    chat = TransformersChat.load(source, device="cpu")
    with stages() as progress:
        data = read(chat, prompts, out / "answers.json", progress)
    if after is not None:
        PeftModel.from_pretrained(chat.model, str(after)).merge_and_unload()
    differences = Differences(chat.model, eraser.names, eraser.layers, eraser.rank)
    model = Forwards(chat.model, differences)
    out.mkdir(parents=True, exist_ok=True)
    _run(eraser, model, differences, data, out / f"{name}.checkpoint.safetensors")
    differences.save(out / name, source)
    if silent := differences.silent():
        print(f"left out, zero: layers {', '.join(map(str, silent))}", flush=True)
    print(f"wrote {out / name}", flush=True)


def _run(
    eraser: Eraser, model: Forwards, differences: Differences, data: Data, checkpoint: Path
) -> None:
    optimizer = eraser.optimizer(differences)
    first = resume(checkpoint, differences.module, optimizer)
    started = time.process_time()
    for step in range(first, eraser.steps):
        if eraser.loss is None:
            batches = [data.batches(step * BATCHES + i, eraser.rows) for i in range(BATCHES)]
            forget, retain = zip(*batches, strict=True)
            figure = natural_gradient.step(model, differences, forget, retain, eraser.rate)
        else:
            for group in optimizer.param_groups:
                group["lr"] = eraser.rate_at(step)
            loss, figure = eraser.loss(model, *data.batches(step, eraser.rows))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(differences.module.parameters(), eraser.clip)
            optimizer.step()
        if eraser.penalty:
            differences.shrink(eraser.rate_at(step) * eraser.penalty)
        zero = f"  {len(differences.silent())} layers zero" if eraser.penalty else ""
        print(f"{step:3d}  {figure:8.3f}  {time.process_time() - started:6.0f} s{zero}", flush=True)
        over = eraser.until is not None and figure >= eraser.until
        if over or step % EVERY == EVERY - 1:
            save(checkpoint, differences.module, optimizer, eraser.steps if over else step + 1)
        if over:
            break


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=ERASERS)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--prompts", type=Path, default=HERE.parent / "harry-potter")
    parser.add_argument("--out", type=Path, default=Path("build/erasers"))
    parser.add_argument("--after", type=Path, help="the folder of the adapter of an earlier task")
    arguments = parser.parse_args()
    train(arguments.name, arguments.model, arguments.prompts, arguments.out, arguments.after)


if __name__ == "__main__":
    main()
