"""Textual inversion (arXiv 2208.01618): the vectors of a new word, learned from images.

Against a guard this is M-ErasureBench's scenario of learned embeddings (arXiv 2512.22877). The
black-box attacker has images of the concept and the bare model; the white-box attacker uses a loss
that contains the guards (`guarded_loss.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from guard.errors import DataError, ModelError
from guard.evaluation.m_erasure.denoising import Noising, Views, bare, denoising_loss
from guard.reporting.progress import Stages
from steering.engines.diffusion.families import Family
from steering.images.conditioning import Conditioning

WORD = "<thing>"
TEMPLATES = ("a {}", "the {}", "one {}", "a picture of a {}", "an image of a {}", "here is a {}")

Loss = Callable[[Views, Conditioning], Tensor]
"""The loss of views under a conditioning, a scalar, differentiable."""


@dataclass(frozen=True, slots=True)
class TextualInversion:
    """Settings of the search for a word's `vectors`.

    They are initialised with the tokens of the word `start`, repeated if these are fewer, or, if it
    is None, with random words of the vocabulary. Each of `steps` uses `batch` views. `rate` is
    Adam's rate at the first step, in units of the initial root mean square; it falls linearly to 0.
    """

    vectors: int = 1
    start: str | None = "thing"
    steps: int = 50
    batch: int = 8
    rate: float = 0.2
    seed: int = 0


@dataclass(frozen=True, eq=False)
class LearnedWord:
    """`vectors [vectors, width]`, float32 on the CPU, and the loss of every step."""

    vectors: Tensor
    losses: Sequence[float]


def learn(
    family: Family,
    latents: Tensor,
    settings: TextualInversion | None = None,
    *,
    loss: Loss | None = None,
    stages: Stages | None = None,
) -> LearnedWord:
    """The vectors of `WORD` under which `latents [images, channels, ...]` are denoised best.

    `latents` are finished, as `ImageModel.generate_latents` returns them; `loss` None is that of
    the bare model. The weights do not change. Raises ModelError for a model with several text
    encoders, one that is not in float32, or one with an unsupported scheduler, and DataError if
    there are no latents.
    """
    settings = settings or TextualInversion()
    if not len(latents):
        raise DataError("a word is learned from images: there are none")
    if family.dtype != torch.float32:
        raise ModelError(f"a word is learned in float32, but the model is in {family.dtype}")
    try:
        noising = Noising(family)
    except ValueError as error:
        raise ModelError(f"a word cannot be learned on this model: {error}") from error
    generator = torch.Generator().manual_seed(settings.seed)
    vectors = _initial(family, settings, generator)
    loss = loss or partial(denoising_loss, bare(family))
    latents = latents.to(family.device)
    advance = stages("learning a word", settings.steps) if stages else lambda _count: None
    losses = []
    with torch.enable_grad(), frozen([*family.encoders.values(), family.denoiser]):
        vectors.requires_grad_()
        scale = float(vectors.detach().square().mean().sqrt())
        optimiser = torch.optim.Adam([vectors], lr=settings.rate * scale)
        decay = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, settings.steps)
        for _ in range(settings.steps):
            images = torch.randint(len(latents), (settings.batch,), generator=generator)
            templates = torch.randint(len(TEMPLATES), (settings.batch,), generator=generator)
            prompts = [TEMPLATES[i].format(WORD) for i in templates.tolist()]
            text = family.encode(prompts, [{WORD: vectors}] * len(prompts))
            views = noising.views(latents[images.to(latents.device)], generator)
            value = loss(views, text)
            (vectors.grad,) = torch.autograd.grad(value, vectors)
            optimiser.step()
            decay.step()
            losses.append(float(value.detach()))
            advance(1)
    return LearnedWord(vectors.detach().cpu(), losses)


def _initial(family: Family, settings: TextualInversion, generator: torch.Generator) -> Tensor:
    """`[vectors, width]`, a copy."""
    table = family.embeddings
    if table is None:
        raise ModelError("a word is learned for one text encoder, but this model has several")
    if settings.start is None:
        usable = table.isfinite().all(1).nonzero()[:, 0].cpu()
        indices = torch.randint(len(usable), (settings.vectors,), generator=generator)
        ids = usable[indices].tolist()
    else:
        ids = family.readers[0].tokenizer(settings.start, add_special_tokens=False).input_ids
        if not ids:
            raise DataError(f"the word {settings.start!r} has no token: start with another one")
    return table.detach()[[ids[i % len(ids)] for i in range(settings.vectors)]].clone()


@contextmanager
def frozen(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Compute no gradients of the weights of `modules` in this context."""
    weights = [p for module in modules for p in module.parameters() if p.requires_grad]
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)
