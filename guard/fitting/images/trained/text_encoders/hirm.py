"""HiRM (arXiv 2602.19631): the first block of a text encoder is trained so that the last one's
representation of the concept goes elsewhere.

The loss is `(1/T) Σ_t ‖h_t - target_t‖²` over the T positions of a prompt, `h` the output of the
last block's self-attention. R: a random direction, `target = c r̂`, with `r̂` one non-negative
uniform tensor `[T, width]` normalised as a whole. S: the representation of a broader category.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from guard.data.concept import Concept
from guard.fitting.images.trained.text_encoders.blocks import Block
from guard.fitting.images.trained.text_encoders.fit import EncoderLesson
from guard.fitting.overlays.training import Losses, Objective


@dataclass(frozen=True)
class Hirm:
    """`size` is c in units of the bare representations' length, by position; `category` is the
    prompt of S. `feed_forward` trains the first block's feed-forward layers too. Each update takes
    `batch` of the concept's phrases, and as many prompts without it, whose states stay with the
    weight `keep`: the paper has none, and its first block sees every prompt."""

    variant: Literal["R", "S"] = "S"
    category: str = "an object"
    size: float = 20.0
    feed_forward: bool = False
    keep: float = 1.0
    batch: int = 8

    name: ClassVar[str] = "hirm"

    def layers(self, blocks: Mapping[str, Sequence[Block]]) -> list[str]:
        firsts = [of[0] for of in blocks.values()]
        return [
            layer
            for first in firsts
            for layer in (*first.attention, *(first.feed_forward if self.feed_forward else ()))
        ]

    def objective(self, lesson: EncoderLesson) -> Objective:
        with torch.no_grad(), _read(lesson) as bare:
            lesson.bare([self.category])
        targets = {name: self._target(h, lesson.generator) for name, h in bare.items()}

        def losses(_update: int) -> Losses:
            with _read(lesson) as states:
                lesson.edited(lesson.sample(lesson.phrases, self.batch))
            parts = [
                (states[name].float() - target).square().sum(-1).mean()
                / target.square().sum(-1).mean()
                for name, target in targets.items()
            ]
            erased = torch.stack(parts).mean()
            if not self.keep:
                return Losses(erased)
            moved = lesson.moved(lesson.sample(lesson.keeping, self.batch))
            return Losses(erased, self.keep * moved)

        return Objective(losses)

    def _target(self, bare: Tensor, generator: torch.Generator) -> Tensor:
        """`[tokens, width]`, from the bare representation `[1, tokens, width]`."""
        if self.variant == "S":
            return bare[0].float()
        direction = torch.rand(bare.shape[1:], generator=generator).to(bare.device)
        length = self.size * bare.float().norm(dim=-1).mean() * len(direction) ** 0.5
        target: Tensor = length * direction / direction.norm()
        return target


def category_of(concept: Concept) -> str:
    """The kind in a concept's name as a phrase: "an object", "a style"."""
    kind = concept.name.partition("/")[0].replace("-", " ")
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


@contextmanager
def _read(lesson: EncoderLesson) -> Iterator[dict[str, Tensor]]:
    """Encoder → the output of its last block's self-attention, `[rows, tokens, width]`, of the last
    forward inside the context."""
    states: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def record(_module: Any, _inputs: Any, output: Tensor) -> None:
            states[name] = output

        return record

    with ExitStack() as stack:
        for name, blocks in lesson.blocks.items():
            module = lesson.base.module(blocks[-1].attention[-1])
            stack.callback(module.register_forward_hook(hook(name)).remove)
        yield states
