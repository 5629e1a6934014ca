"""EAR (arXiv 2506.20151) on the autoregressive model: `python -m examples.emoji.tokens.erase`.

At each token of an image the last hidden state under the prompt for the concept is trained to be
`h(instead) - η (h(asked) - h(instead))` of the frozen model, for both prompts before the same past
of the image. (The published loop feeds the newest token alone, without that past.) The loss is
summed over a window of tokens before each step, and windows under a threshold are skipped.

What it writes is a PEFT adapter, which `guard import` makes a gated guard of.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from examples.emoji.checkpoint import resume, save
from examples.emoji.tokens.pairs import Pair, captions_with, drawn_pairs
from examples.erasers.differences import Differences
from guard.models.token_images import TokenImageModel


@dataclass(frozen=True)
class Settings:
    """`overshoot` is EAR's η; a window whose mean loss is at most `threshold` is not learned from;
    attention is trained at all layers, with `rank`."""

    overshoot: float = 1.0
    window: int = 48
    threshold: float = 0.05
    rank: int = 8
    rate: float = 2e-3
    pairs: int = 50
    epochs: int = 3
    names: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")


def image_states(model: Any, prompt: Sequence[int], image: Sequence[int]) -> Tensor:
    """The last hidden states `[tokens, width]` that predict the tokens of an image."""
    ids = torch.tensor([[*prompt, *image[:-1]]])
    states: Tensor = model.model(input_ids=ids, use_cache=False).last_hidden_state[0]
    return states[len(prompt) - 1 :]


def windows(count: int, size: int) -> Iterator[slice]:
    """The windows of an image of `count` tokens."""
    return (slice(first, first + size) for first in range(0, count, size))


def target(model: Any, pair: Pair, overshoot: float) -> Tensor:
    """What the states are to become, of the frozen model."""
    with torch.no_grad():
        asked = image_states(model, pair.asked, pair.image)
        instead = image_states(model, pair.instead, pair.image)
    return instead - overshoot * (asked - instead)


def train(model: TokenImageModel, concept: str, settings: Settings, out: Path) -> int:
    """Train an eraser and write its adapter to `out`; goes on where its checkpoint ends. Returns
    the number of windows that were learned from in this run."""
    pairs = drawn_pairs(model, [*captions_with(concept, settings.pairs, 0)])
    chat = model.chat
    layers = range(chat.depth)
    differences = Differences(chat.model, settings.names, layers, settings.rank)
    optimizer = torch.optim.Adam(differences.module.parameters(), lr=settings.rate)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / "checkpoint.safetensors"
    first, learned = resume(checkpoint, differences.module, optimizer), 0
    for number in range(first, settings.epochs * len(pairs)):
        pair = pairs[number % len(pairs)]
        with differences.off():
            wanted = target(chat.model, pair, settings.overshoot)
        for window in windows(model.images.count, settings.window):
            # the states of a window depend on what the windows before it have changed
            states = image_states(chat.model, pair.asked, pair.image[: window.stop])
            distance = (states[window] - wanted[window]).square().mean(-1)
            if float(distance.detach().mean()) <= settings.threshold:
                continue
            optimizer.zero_grad()
            distance.sum().backward()
            torch.nn.utils.clip_grad_norm_(differences.module.parameters(), 1.0)
            optimizer.step()
            learned += 1
        if (number + 1) % len(pairs) == 0:
            save(checkpoint, differences.module, optimizer, number + 1)
            print(
                f"{number + 1:4d} images, {learned} windows, last loss "
                f"{float(distance.detach().mean()):.3f}, {time.process_time():.0f} s",
                flush=True,
            )
    differences.save(out, chat.name)
    return learned


def main(
    concept: Annotated[str, typer.Argument(help="One of concepts.json.")] = "knife",
    model: str = "emoji-tokens",
    overshoot: float = 1.0,
    epochs: int = 3,
    out: Path = Path("build/emoji-tokens/ear"),
) -> None:
    """Train EAR's eraser of CONCEPT and write its adapter to OUT."""
    settings = Settings(overshoot=overshoot, epochs=epochs)
    train(TokenImageModel.load(model, device="cpu"), concept, settings, out)
    print(f"wrote {out}")


if __name__ == "__main__":
    typer.run(main)
