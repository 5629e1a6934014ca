"""One denoising step of a batch with its guards: the same for serving, for pipelines that a caller
runs, and for evaluation.

A step asks the network for the conditional rows, then the unconditional ones of rows under
classifier-free guidance, then the extra conditions of guidance guards; overlays act inside these
forwards and the attention seam reads them; guidance guards make one prediction of them; the sampler
steps; latent guards rewrite the sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steering.engines.diffusion.families import Family
from steering.engines.diffusion.forwards import Forwards
from steering.engines.diffusion.rows import beside
from steering.engines.diffusion.sampling.samplers import Sampler
from steering.engines.diffusion.sampling.trajectories import Trajectory
from steering.engines.diffusion.seams.latents import DenoisingStep, LatentSeam
from steering.engines.diffusion.seams.projections import OverlaySeam
from steering.hidden.rows import RowGuard
from steering.images.conditioning import Conditioning, concatenated
from steering.images.guidance import Guidance
from steering.images.stacks import ImageStacks


@dataclass(frozen=True)
class Layout:
    """The parts of a batch that stay the same from step to step while no row comes or goes.

    The network's rows are all conditional ones, then the unconditional ones of `guided [n]`, then
    the extra ones of guidance guards; `source` says whose latents each takes, `plain` which of them
    is a row's unconditional one, or its only one. The rest is `[rows]`: `scale` is the guidance
    scale, `offset` the place of a row's first evaluation in the sampler's tables; `ahead`
    evaluations of a row's `whole` schedule lay behind it when it began, fewer than none where it
    inverts an image first.
    """

    text: Conditioning
    source: Tensor
    plain: Sequence[int]
    guided: Tensor
    scale: Tensor
    offset: Tensor
    ahead: Tensor
    whole: Tensor


@dataclass(frozen=True)
class Predicted:
    """The network's output for a batch: `unconditional` and `conditional [rows, ...]`, equal for a
    row without guidance, and `extra [extra rows, ...]`."""

    unconditional: Tensor
    conditional: Tensor
    extra: Tensor


class Denoising:
    """The seams of one network, and the guards on the rows of one batch. Not thread-safe.

    `forward` is the number of rows in one forward of the network, None for all at once; with
    `apart`, a latent guard's result on a row does not depend on the row's company. Hooks the
    network until `close`. Raises ValueError for overlays or latent guards that do not fit it.
    """

    def __init__(
        self,
        family: Family,
        stacks: ImageStacks,
        sampler: Sampler,
        *,
        forward: int | None,
        apart: bool = False,
    ) -> None:
        self.family, self.sampler, self._stacks = family, sampler, stacks
        self.overlays = OverlaySeam(family.denoiser)
        self.overlays.install(stacks.overlays_of(""))
        try:
            self.latents = LatentSeam(stacks.latents, family, apart=apart)
        except BaseException:
            self.overlays.remove()
            raise
        self._forwards = Forwards(family, forward, [self.overlays, self.latents.seam])
        self.reset()

    def reset(self) -> None:
        """Forget all rows."""
        self.guidance = Guidance(self._stacks.guidance, self.family.device)
        self.latents.reset()

    def close(self) -> None:
        """Take every hook off the network."""
        self.latents.close()
        self.overlays.remove()

    def layout(
        self,
        text: Conditioning,
        negative: Conditioning,
        scales: Sequence[float],
        trajectories: Sequence[Trajectory],
        overlaying: Sequence[Sequence[RowGuard]],
    ) -> Layout:
        """Of rows with these conditionings `[rows]`, guidance scales, trajectories and guards that
        overlay the network; a scale of 1 or less asks for no unconditional prediction."""
        count, device = len(scales), self.family.device
        free = [] if self.family.distilled else [i for i, s in enumerate(scales) if s > 1]
        guided = _integers(free, device)
        without = {row: count + i for i, row in enumerate(free)}
        texts = [text, negative.select(guided)]
        sources = [torch.arange(count, device=device), guided]
        if len(self.guidance.extra_rows):
            texts.append(self.guidance.text)
            sources.append(self.guidance.extra_rows)
        source = torch.cat(sources)
        self.overlays.carry(overlaying, source)
        return Layout(
            text=concatenated(texts),
            source=source,
            plain=[without.get(row, row) for row in range(count)],
            guided=guided,
            scale=torch.tensor(scales, device=device),
            offset=_integers([t.offset for t in trajectories], device),
            ahead=_integers([t.skipped - t.inverting for t in trajectories], device),
            whole=_integers([t.whole for t in trajectories], device),
        )

    def step(
        self,
        layout: Layout,
        latents: Tensor,
        carry: Tensor,
        done: Tensor,
        drawn: Sequence[int],
    ) -> tuple[Tensor, Tensor]:
        """One evaluation of the network for every row: the next latents and carries `[rows, ...]`.

        `done [rows]` evaluations lie behind each row, `drawn` of them without those that invert an
        image.
        """
        at = layout.offset + done
        timesteps, shrink = self.sampler.inputs(at)
        self.latents.look(drawn, layout.plain)
        inputs, source = latents * beside(shrink, latents), layout.source
        outputs = self._forwards(
            inputs[source], timesteps[source], layout.text, layout.scale[source]
        )
        count, guided = len(latents), layout.guided
        conditional, rest = outputs[:count], outputs[count:]
        # without guidance the unconditional prediction is the conditional one, and so is the result
        unconditional = conditional.index_copy(0, guided, rest[: len(guided)])
        predicted = Predicted(unconditional, conditional, rest[len(guided) :])
        progress = (done + layout.ahead) / layout.whole
        output = self.guided(predicted, latents, timesteps, layout.scale, progress)
        return self.stepped(at, latents, predicted, output, carry)

    def guided(
        self,
        predicted: Predicted,
        latents: Tensor,
        timesteps: Tensor,
        scale: Tensor,
        progress: Tensor,
    ) -> Tensor:
        """Classifier-free guidance `u + s (c - u)` of every row, with the terms of its guards."""
        unconditional, conditional = predicted.unconditional, predicted.conditional
        if not len(self.guidance):
            return unconditional + beside(scale, conditional) * (conditional - unconditional)
        return self.guidance.combine(
            unconditional,
            conditional,
            predicted.extra,
            latents=latents,
            timestep=timesteps,
            scale=scale,
            progress=progress,
        )

    def stepped(
        self, at: Tensor, latents: Tensor, predicted: Predicted, output: Tensor, carry: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The sampler's step from the guided `output`, with what latent guards write."""
        moved, following = self.sampler.step(at, latents, output, carry)
        step = DenoisingStep(latents, predicted.unconditional, output, moved, following)
        return self.latents.write(step)


def _integers(values: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.long, device=device)
