"""Fitting a probe: the model draws the concept and what is not the concept, and is looked into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import torch
from torch import Tensor

from classifiers.probes import ProbeRecipe, Probes, train_probe
from guard.artifact import Artifact, ArtifactMeta
from guard.concept import Concept
from guard.errors import DataError
from guard.fitting.concept_prompts import LabelledPrompt
from guard.fitting.likeness import DRAWN, UNDRAWN, likeness_of
from guard.fitting.prompt_rates import by_kind, calibrated, figures
from guard.painter import Painter
from guard.progress import Stages

_SPARE = {"unsafe": 3.0, "near": 1.25}
"""Prompts to choose from for one that is drawn: among others, a disguised name is often not drawn
as what it means. Far ones are taken as they come."""
_LIKE_OTHERS = 0.9
"""A picture of the concept that scores less than this share of those without it is left out."""


@dataclass(frozen=True)
class Drawing:
    """The pictures of a fit: about `count` with the concept and `count` without, half as many of
    hard negatives. `bf16` computes the denoiser in bfloat16 while prompts are chosen.
    """

    count: int
    steps: int
    guidance: float
    bf16: bool = False


@dataclass(frozen=True)
class ProbeFit:
    """A fitted guard with what gave its threshold: held-out scores by kind."""

    artifact: Artifact
    scores: Mapping[str, Sequence[float]]


def fit_probe(
    painter: Painter,
    concept: Concept,
    prompts: Sequence[LabelledPrompt],
    drawing: Drawing,
    *,
    fpr: float,
    near_fpr: float,
    recipe: ProbeRecipe,
    seed: int,
    progress: Stages,
) -> ProbeFit:
    """A probe for each split of `prompts`, taught all pictures but that split's, scored on these.

    The labels are those of the prompts. Of those with the concept, and of hard negatives, only such
    are drawn as the denoiser is sure of (`guard.fitting.likeness`): not every prompt that names the
    concept shows it, and a hard negative that the denoiser takes for the concept does. Pictures of
    the concept that a first round of probes, taught without them, takes for others are left out of
    the second (confident learning, Northcutt et al., arXiv 1911.00068). The scores of all held-out
    pictures give the threshold; all probes together are the guard (cross-conformal prediction, Vovk
    2015). Raises DataError where the prompts do not do for the rates that are asked for.
    """
    chosen = _chosen(painter, concept, prompts, drawing, seed, progress)
    texts = [prompt.text for prompt in chosen]
    states = painter.draw(
        texts,
        steps=drawing.steps,
        guidance=drawing.guidance,
        seed=seed,
        tick=progress("drawing pictures", len(texts)),
    )
    if not states.isfinite().all():
        raise DataError("the model draws pictures that are not finite: another dtype may help")
    splits = sorted({prompt.split for prompt in chosen})
    parts = torch.tensor([splits.index(prompt.split) for prompt in chosen])
    unsafe = torch.tensor([prompt.unsafe for prompt in chosen])
    every = torch.ones_like(unsafe)
    _, first = _crossed(states, unsafe, every, parts, recipe)
    # a prompt that was not drawn as it says is no example of the concept
    drawn = ~unsafe | (first > first[~unsafe].quantile(_LIKE_OTHERS))
    taught, held_out = _crossed(states, unsafe, drawn, parts, recipe)
    kinds = [prompt.kind for prompt in chosen]
    scores = by_kind(held_out.tolist(), kinds)
    threshold = calibrated(scores, fpr, near_fpr)
    meta = ArtifactMeta(
        method="probe",
        concept=concept.name,
        description=concept.description,
        created=date.today(),
        model=painter.fitted_denoiser(states.shape[2]),
        seams=("latent",),
        settings={"threshold": threshold, "steps": drawing.steps, "guidance": drawing.guidance},
        calibration=figures(scores, threshold, fpr, near_fpr),
    )
    return ProbeFit(Artifact(meta, _tensors(taught)), scores)


def _crossed(
    states: Tensor,
    unsafe: Tensor,
    used: Tensor,
    parts: Tensor,
    recipe: ProbeRecipe,
) -> tuple[list[Probes], Tensor]:
    """A probe for each part, taught what is `used` of the others, and each part's scores by it."""
    count = int(parts.max()) + 1
    taught, scores = [], torch.zeros(len(states))
    for part in range(count):
        own = used & (parts != part)
        if not unsafe[own].any() or unsafe[own].all():
            raise DataError("there are no pictures with the concept, or none without it")
        taught.append(train_probe(states[own], unsafe[own], recipe))
        scores[parts == part] = taught[-1](states[parts == part])[:, 0]
    return taught, scores


def _chosen(
    painter: Painter,
    concept: Concept,
    prompts: Sequence[LabelledPrompt],
    drawing: Drawing,
    seed: int,
    progress: Stages,
) -> list[LabelledPrompt]:
    """The prompts to draw, of each kind as many as are wanted, spread over the splits."""
    likeness = likeness_of(painter, concept, prompts, seed=seed, bf16=drawing.bf16)
    wanted = {"unsafe": drawing.count, "far": drawing.count, "near": drawing.count // 2}
    of_kind = {kind: [p for p in prompts if p.kind == kind] for kind in wanted}
    asked = {k: _spread(of_kind[k], round(spare * wanted[k])) for k, spare in _SPARE.items()}
    advance = progress("choosing prompts", sum(map(len, asked.values())))
    for kind, candidates in asked.items():
        alike = likeness(painter.read([prompt.text for prompt in candidates]), advance).tolist()
        of_kind[kind] = [
            prompt
            for prompt, value in zip(candidates, alike, strict=True)
            if (value >= DRAWN if prompt.unsafe else value <= UNDRAWN)
        ]
    return [p for kind, count in wanted.items() for p in _spread(of_kind[kind], count)]


def _spread(prompts: Sequence[LabelledPrompt], count: int) -> list[LabelledPrompt]:
    """`count` at most, from all over the splits, which stand one behind the other."""
    size = min(count, len(prompts))
    return [prompts[i * len(prompts) // size] for i in range(size)]


def _tensors(probes: Sequence[Probes]) -> dict[str, Any]:
    def joined(parts: Sequence[Tensor]) -> Any:
        return torch.cat(list(parts)).numpy()

    return {
        "weight.picture": joined([probe.weight for probe in probes]),
        "bias.picture": joined([probe.bias for probe in probes]),
    }
