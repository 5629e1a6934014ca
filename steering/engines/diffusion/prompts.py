"""Prompts to guarded conditionings: encode, let guards act, encode again under overlays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from steering.engines.diffusion.families import Family
from steering.engines.diffusion.placeholders import Learned
from steering.engines.diffusion.seams.projections import OverlaySeam
from steering.hidden.rows import RowGuard
from steering.images.conditioning import Conditioning
from steering.images.embedding import Applied
from steering.images.stacks import ImageStacks


@dataclass(frozen=True)
class GuardedPrompts:
    """The conditionings of prompts as encoded, and after their guards have acted."""

    bare: Conditioning
    applied: Applied


class EncoderOverlays:
    """Overlays on the text encoders of one pipeline, for the prompts whose guards have some.

    Raises ValueError for overlays of layers that the encoders do not have.
    """

    def __init__(self, encoders: Mapping[str, nn.Module], stacks: ImageStacks) -> None:
        self._seams: list[OverlaySeam] = []
        try:
            for component in sorted(stacks.components):
                if component not in encoders:
                    known = ", ".join(encoders)
                    raise ValueError(f"the model has no text encoder {component!r}, but {known}")
                seam = OverlaySeam(encoders[component])
                seam.install(stacks.overlays_of(component))
                self._seams.append(seam)
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Take every hook off again."""
        for seam in self._seams:
            seam.remove()

    @contextmanager
    def on(self, guards: Sequence[Sequence[RowGuard]]) -> Iterator[None]:
        """Overlay the encoders inside the context; `guards[i]` are those of row i of a forward."""
        for seam in self._seams:
            rows = torch.arange(len(guards), device=seam.device)
            seam.carry(guards, rows)
            seam.enter(rows)
        try:
            yield
        finally:
            for seam in self._seams:
                seam.carry([[] for _ in guards], torch.arange(len(guards), device=seam.device))
                seam.leave()


class PromptGuarding:
    """Encodes prompts and lets the guards of each read and refine it.

    Hooks the text encoders where guards overlay them, until `close`. Raises ValueError for overlays
    that do not fit the encoders.
    """

    def __init__(self, family: Family, stacks: ImageStacks) -> None:
        self._family, self._bank, self._late = family, stacks.prompts, stacks.late
        self._overlays = EncoderOverlays(family.encoders, stacks)

    def close(self) -> None:
        """Take the hooks off."""
        self._overlays.remove()

    def __call__(
        self,
        prompts: Sequence[str],
        guards: Sequence[Sequence[RowGuard]],
        learned: Sequence[Learned] | None = None,
    ) -> GuardedPrompts:
        """Encode `prompts` and apply `guards[i]` to prompt i; `learned` is as in `Family.encode`.

        Those of the guards that read latents instead of prompts are ignored. Raises KeyError for
        an unknown guard.
        """
        prompt_guards = [[g for g in row if g.name not in self._late] for row in guards]
        overflow = self._family.overflow(prompts, learned) if any(prompt_guards) else ()
        bare = self._family.encode(prompts, learned)

        def encode(due: Sequence[Sequence[RowGuard]]) -> Conditioning:
            with self._overlays.on(due):
                return self._family.encode(prompts, learned)

        return GuardedPrompts(bare, self._bank.apply(bare, prompt_guards, overflow, encode))
