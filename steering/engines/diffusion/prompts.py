"""Prompts to guarded conditionings: encode, let guards act, encode again under overlays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from steering.engines.diffusion.families import Family
from steering.engines.diffusion.placeholders import Learned
from steering.engines.diffusion.seams.projections import OverlaySeam
from steering.hidden.rows import RowGuard
from steering.images.conditioning import Conditioning
from steering.images.embedding import Applied, ImageReading
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
        """Overlay the encoders inside the context; `guards[i]` are those of row i of each
        forward."""
        with ExitStack() as stack:
            for seam in self._seams:
                rows = torch.arange(len(guards), device=seam.device)
                seam.carry(guards, rows)
                stack.callback(seam.carry, [[] for _ in guards], rows)
                stack.enter_context(seam.every_forward(rows))
            yield


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
        prompt_guards = self._of_prompts(guards)
        overflow = self._family.overflow(prompts, learned) if any(prompt_guards) else ()
        bare = self._family.encode(prompts, learned)

        def encode(due: Sequence[Sequence[RowGuard]]) -> Conditioning:
            with self._overlays.on(due):
                return self._family.encode(prompts, learned)

        return GuardedPrompts(bare, self._bank.apply(bare, prompt_guards, overflow, encode))

    def unconditional(
        self,
        negative: Sequence[str],
        guards: Sequence[Sequence[RowGuard]],
        readings: Sequence[dict[str, ImageReading]],
        plain: Conditioning | None = None,
    ) -> Conditioning:
        """The unconditional side of rows whose prompts have these readings: one changed encoder
        encodes both sides. `plain` is that of a row without a negative prompt, where none has one.
        """
        bare = self._family.unconditional(negative) if plain is None else plain.expand(len(guards))
        due = self._bank.encoding(self._of_prompts(guards), readings)
        if not any(due):
            return bare
        with self._overlays.on(due):
            edited = self._family.unconditional(negative)
        device = next(iter(bare.states.values())).device
        return bare.choose(torch.tensor([bool(row) for row in due], device=device), edited)

    def _of_prompts(self, guards: Sequence[Sequence[RowGuard]]) -> list[list[RowGuard]]:
        """The guards of each row that read prompts."""
        return [[guard for guard in row if guard.name not in self._late] for row in guards]
