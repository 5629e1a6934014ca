"""One denoising step of a batch with its guards: the same for serving, for pipelines that a caller
runs, and for evaluation.

A step runs the network on the conditional rows, then on the unconditional ones of rows under
classifier-free guidance, then on the extra conditions of guidance guards. Overlays act inside these
forwards, and the attention seam reads them. Guidance guards combine the predictions, the sampler
steps, and latent guards rewrite the sample.
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
    """The parts of a batch that stay the same from step to step until rows are added or removed.

    The network's rows are the conditional ones of all rows, then the unconditional ones of the
    rows `guided [n]`, then the extra ones of guidance guards; `source` is the row whose latents
    each takes. `plain[row]` is the network's row that holds the unconditional prediction of a row,
    or its only one. The others are `[rows]`: `scale` is the guidance scale, `offset` the position
    of the first evaluation in the sampler's tables; `ahead` is the number of evaluations of the
    `whole` schedule that a row skipped, negative for one that inverts an image first.
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
    """The network's output for a batch: `unconditional` and `conditional [rows, ...]`, which are
    equal for a row without guidance, and `extra [extra rows, ...]`."""

    unconditional: Tensor
    conditional: Tensor
    extra: Tensor


class Denoising:
    """The seams of one network, and the guards on the rows of one batch. Not thread-safe.

    `forward` is the number of rows in one forward of the network, None for all at once. With
    `one_by_one`, the result of a latent guard on a row does not depend on the other rows. Hooks the
    network until `close`. Raises ValueError for overlays or latent guards that do not fit it.
    """

    def __init__(
        self,
        family: Family,
        stacks: ImageStacks,
        sampler: Sampler,
        *,
        forward: int | None,
        one_by_one: bool = False,
    ) -> None:
        self.family, self.sampler, self._stacks = family, sampler, stacks
        self.overlays = OverlaySeam(family.denoiser)
        self.overlays.install(stacks.overlays_of(""))
        try:
            self.latents = LatentSeam(stacks.latents, family, one_by_one=one_by_one)
        except BaseException:
            self.overlays.remove()
            raise
        self._forwards = Forwards(family, forward, [self.overlays, self.latents.attention])
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
        """The layout of rows with these conditionings `[rows]`, guidance scales, trajectories and
        guards that overlay the network.

        A row with a scale of 1 or less has no unconditional prediction.
        """
        count, device = len(scales), self.family.device
        over_one = [] if self.family.distilled else [i for i, s in enumerate(scales) if s > 1]
        guided = _integers(over_one, device)
        unconditional = {row: count + i for i, row in enumerate(over_one)}
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
            plain=[unconditional.get(row, row) for row in range(count)],
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
        generated: Sequence[int],
    ) -> tuple[Tensor, Tensor]:
        """One evaluation of the network for every row: the next latents and carries `[rows, ...]`.

        `done [rows]` counts the evaluations of each row so far, `generated` the same without those
        that invert an image.
        """
        at = layout.offset + done
        timesteps, shrink = self.sampler.inputs(at)
        self.latents.inspect(generated, layout.plain)
        inputs, source = latents * beside(shrink, latents), layout.source
        outputs = self._forwards(
            inputs[source], timesteps[source], layout.text, layout.scale[source]
        )
        count, guided = len(latents), layout.guided
        conditional, rest = outputs[:count], outputs[count:]
        # without guidance the conditional prediction serves as both, and so it is the result
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
        """The sampler's step from the guided `output`, as latent guards rewrite it."""
        stepped, following = self.sampler.step(at, latents, output, carry)
        step = DenoisingStep(latents, predicted.unconditional, output, stepped, following)
        return self.latents.write(step)


def _integers(values: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.long, device=device)
