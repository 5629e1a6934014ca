"""What the fits of image guards have in common: options, and one run from files to artifact."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from guard.commands.fit.images.output import finish
from guard.commands.fit.options import AsJson, ConceptFile, Device, Model, NearFpr, Out
from guard.commands.fit.output import require_artifact_name
from guard.data.concept import Concept, read_concept
from guard.models.kind_checks import source_of
from guard.reporting.progress import Stages, stages

if TYPE_CHECKING:
    from guard.artifact import Artifact
    from guard.fitting.images.training_free import EncodedConcept
    from guard.fitting.prompts.rates import PromptRates
    from guard.models.images import ImageModel

Count = Annotated[int, typer.Option(min=100, help="Unsafe prompts to make for fitting.")]
Fpr = Annotated[float, typer.Option(min=1e-4, max=0.5, help="False-positive rate on far prompts.")]
Gated = Annotated[
    bool, typer.Option("--gated", help="Act only where a linear score of the prompt is high.")
]
Ungated = Annotated[
    bool, typer.Option("--ungated", help="Act on every prompt, as the published model does.")
]
Seed = Annotated[int, typer.Option(help="Of the prompts that are made, and of samples.")]

Fit = Callable[["ImageModel", Concept, "EncodedConcept | None", "PromptRates", Stages], "Artifact"]


@dataclass(frozen=True, kw_only=True)
class FitRun:
    """The options that every command here takes, and the run; a gate keeps the false-positive
    rates `fpr` and `near_fpr` on prompts that are made for it."""

    model: Model
    concept_file: ConceptFile
    out: Out
    count: Count = 400
    fpr: Fpr = 0.005
    near_fpr: NearFpr = 0.03
    seed: Seed = 0
    device: Device = "auto"
    as_json: AsJson = False

    @property
    def has_gate(self) -> bool:
        return True

    def save(self, fit: Fit) -> Artifact:
        """Read the files, load the model, fit, write the artifact and print its figures."""
        concept = read_concept(self.concept_file)
        require_artifact_name(self.out)
        source_of(self.model, "images")

        from guard.fitting.images.training_free import encode_concept, held_out_of
        from guard.fitting.prompts.concept_prompts import prompts_of
        from guard.fitting.prompts.rates import PromptRates, require_enough
        from guard.models.images import ImageModel

        rates = PromptRates(self.fpr, self.near_fpr)
        prompts = prompts_of(concept, self.count, self.seed) if self.has_gate else []
        if self.has_gate:
            held_out = (prompt.kind for prompt in prompts if prompt.split != "train")
            require_enough(held_out, rates)
        image_model = ImageModel.load(self.model, device=self.device)
        encoded, started = None, time.monotonic()
        with stages() as progress:
            if self.has_gate:
                encoded = encode_concept(image_model, concept, prompts, progress)
            artifact = fit(image_model, concept, encoded, rates, progress)
        fitted = held_out_of(artifact, encoded)
        finish(fitted, concept, self.out, time.monotonic() - started, as_json=self.as_json)
        return artifact


@dataclass(frozen=True, kw_only=True)
class GatedIfAsked(FitRun):
    """Of a guard that acts on every prompt, as the published one does, unless a gate is asked
    for."""

    gated: Gated = False

    @property
    def has_gate(self) -> bool:
        return self.gated


@dataclass(frozen=True, kw_only=True)
class GatedUnlessAsked(FitRun):
    """Of a guard that has a gate unless it is to act on every prompt."""

    ungated: Ungated = False

    @property
    def has_gate(self) -> bool:
        return not self.ungated
