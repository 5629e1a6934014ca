"""A published eraser as a guard: what its checkpoint changes in a pipeline, as an overlay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guard.artifact import Artifact
from guard.data.concept import Concept
from guard.errors import ModelError
from guard.fitting.images.training_free import EncodedConcept, perhaps_gated, with_transport
from guard.fitting.overlays.base import Base
from guard.fitting.overlays.changes import Change
from guard.fitting.overlays.cutting import Energy, energies, factors_of
from guard.fitting.overlays.factors import Factors
from guard.fitting.overlays.reading import read_difference
from guard.fitting.prompts.concept_prompts import prompts_of
from guard.fitting.prompts.rates import PromptRates
from guard.reporting.progress import Stages

if TYPE_CHECKING:  # they load diffusers, which nothing here needs
    from guard.models.images import ImageModel
    from steering.engines.diffusion.families import Family

STEPS = 4
"""Steps of the images in which the inputs of layers are recorded."""
RANK = 64
"""The largest rank of a layer by default; of adapters, that of their factors."""


@dataclass(frozen=True)
class ImportRequest:
    """What is imported: `source` is a file or a folder, `component` the network that names without
    a prefix are of, `rank` the largest one to cut to (None: see `RANK`), `prompts` how many images
    are made to see what a change does, `least_share` the least share of each layer's energy. With
    `transport` a gated guard's strength follows the prompt's score."""

    source: Path
    component: str | None = None
    rank: int | None = None
    prompts: int = 128
    least_share: float = 0.9
    transport: bool = False


def fit_import(
    image_model: ImageModel,
    concept: Concept,
    encoded: EncodedConcept | None,
    rates: PromptRates,
    request: ImportRequest,
    progress: Stages,
) -> Artifact:
    """A guard that does what a checkpoint does, for the prompts that its gate lets through; without
    `encoded` it has no gate. The setting `dropped` names by kind the weights that it leaves out.

    Raises DataError for a checkpoint that cannot be imported or of which too little would be kept,
    and ModelError for a pipeline whose layers cannot be overlaid.
    """
    base = base_of(image_model.family)
    difference = read_difference(request.source, base, request.component)
    recorded = _recorded(image_model, base, difference.changes, concept, request.prompts, progress)
    difference = difference.run(recorded, request.source)
    factors = factors_of(difference.changes, recorded, request.rank, RANK)
    factors.require_kept(request.least_share)
    origin = {
        "source": request.source.name,
        "layout": difference.layout,
        "dropped": {kind: list(names) for kind, names in difference.dropped.items()},
    }
    return overlay_artifact(
        image_model, concept, encoded, rates, factors, origin, transport=request.transport
    )


def overlay_artifact(
    image_model: ImageModel,
    concept: Concept,
    encoded: EncodedConcept | None,
    rates: PromptRates,
    factors: Factors,
    origin: Mapping[str, Any],
    *,
    transport: bool = False,
) -> Artifact:
    """The guard of an overlay that was imported or trained; `origin` are settings that say where it
    comes from. With `transport` a gated one's strength follows the prompt's score. Raises DataError
    and ModelError."""
    try:
        model = image_model.fitted_denoiser()
    except ValueError as error:
        raise ModelError(f"model {image_model.name!r}: {error}") from error
    settings: dict[str, Any] = {
        "strength": 1.0,
        "streams": list(image_model.encode([""]).states),
        # an overlay may change them, and what it does depends on their output
        "encoders": image_model.fitted_model().fingerprint,
        **origin,
        **factors.settings(),
    }
    tensors = factors.tensors()
    artifact = perhaps_gated(
        "overlay", "projection", model, concept, encoded, rates, tensors, settings
    )
    return with_transport(artifact, encoded) if transport and encoded is not None else artifact


def base_of(family: Family) -> Base:
    """The networks of a pipeline that overlays may act in, by the names of its parts."""
    parts: Mapping[str, Any] = family.pipeline.components
    denoisers = {name: "" for name, part in parts.items() if part is family.denoiser}
    encoders = dict(family.encoders)
    return Base({"": family.denoiser, **encoders}, {**denoisers, **{n: n for n in encoders}})


def _recorded(
    image_model: ImageModel,
    base: Base,
    changes: Mapping[str, Change],
    concept: Concept,
    count: int,
    progress: Stages,
) -> Mapping[str, Energy]:
    """What the changes would add while the bare model makes images, half of them of the concept."""
    made = [p for p in prompts_of(concept, max(count, 2)) if p.split == "train"]
    asking = [p.text for p in made if p.unsafe][: count // 2]
    others = ["", *(p.text for p in made if not p.unsafe)]
    prompts = [*asking, *others[: max(count - len(asking), 1)]]
    advance = progress("recording states", len(prompts))
    try:
        with energies(base, changes) as recorded:
            image_model.generate_latents(prompts, steps=STEPS, guidance=1.0, advance=advance)
    except ValueError as error:  # a pipeline or a scheduler that the engine cannot run
        raise ModelError(f"model {image_model.name!r}: {error}") from error
    return recorded
