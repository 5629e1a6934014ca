"""`guard fit uce|rece|trce|realera`: closed-form edits of the denoiser, as overlays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guard.commands.fit.images.run import GatedIfAsked
from guard.commands.fit.options import Guidance
from guard.data.concept import Concept, is_name, read_concept
from guard.data.prompts import RetainPrompt, read_rows, texts
from guard.errors import DataError
from guard.reporting.progress import Stages

if TYPE_CHECKING:
    from guard.artifact import Artifact
    from guard.fitting.images.closed_form.fit import ClosedForm
    from guard.fitting.images.closed_form.rounds import JudgedRounds
    from guard.fitting.images.training_free import EncodedConcept
    from guard.fitting.prompts.rates import PromptRates
    from guard.models.images import ImageModel

Instead = Annotated[
    str | None,
    typer.Option(
        help="What replaces the concept; without it the first of the file's `instead`, or nothing."
    ),
]
Keep = Annotated[
    float, typer.Option(min=0, max=100, help="Weight of the prompts to preserve (λ1).")
]
Ridge = Annotated[
    float, typer.Option(min=1e-6, max=1e6, help="Weight of the model's own projections (λ2).")
]
Preserve = Annotated[
    list[str] | None,
    typer.Option(help="A phrase that must stay as it is; may be given several times."),
]
PreserveFile = Annotated[
    list[Path] | None,
    typer.Option(help="The concept file of a concept that must stay; may be given several times."),
]
Prompts = Annotated[
    Path | None,
    typer.Option(
        help="Ordinary prompts, JSON Lines; without it safe ones made from the concept file."
    ),
]
Rank = Annotated[int, typer.Option(min=1, max=256, help="Of the overlay, at most.")]
LeastShare = Annotated[
    float,
    typer.Option(min=0, max=1, help="Refuse an overlay that keeps less of the edit than this."),
]
Also = Annotated[
    list[Path] | None,
    typer.Option(
        help="The concept file of a further concept that the same edit erases; may be given "
        "several times. Without a gate."
    ),
]
Name = Annotated[
    str | None,
    typer.Option(help="What the concepts are called together, KIND/NAME; needed with --also."),
]


def uce(
    run: GatedIfAsked,
    instead: Instead = None,
    keep: Keep = 0.1,
    ridge: Ridge = 0.1,
    preserve: Preserve = None,
    preserve_file: PreserveFile = None,
    also: Also = None,
    name: Name = None,
    rank: Rank = 64,
    least_share: LeastShare = 0.9,
) -> None:
    """Fit UCE: the concept edited out of the denoiser's text projections, weights untouched."""
    from guard.fitting.images.closed_form.uce import Uce

    fit = _ClosedFormFit(
        lambda concept: Uce(_instead(concept, instead), keep, ridge), run.count, run.seed
    )
    fit = fit.keeping(preserve, preserve_file, None, rank, least_share)
    run.save(fit.jointly(also, name, gated=run.gated))


def rece(
    run: GatedIfAsked,
    instead: Instead = None,
    rounds: Annotated[
        int, typer.Option(min=1, max=10, help="Rounds after the first edit, at most.")
    ] = 3,
    derive: Annotated[
        float,
        typer.Option(min=1e-9, max=1e6, help="Weight of the length of derived states (λ)."),
    ] = 0.1,
    judge: Annotated[
        Path | None,
        typer.Option(
            help="An ONNX judge of images: the round whose images of validation prompts show the "
            "concept least is kept. Without one the last round is."
        ),
    ] = None,
    images: Annotated[int, typer.Option(min=8, help="Images of each round for the judge.")] = 48,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Denoising steps of these images.")
    ] = None,
    guidance: Guidance = None,
    keep: Keep = 0.1,
    ridge: Ridge = 0.1,
    preserve: Preserve = None,
    preserve_file: PreserveFile = None,
    rank: Rank = 128,
    least_share: LeastShare = 0.9,
) -> None:
    """Fit RECE: UCE, and then the states that still bring the concept back, round by round."""
    from guard.fitting.images.closed_form.rece import Rece
    from guard.fitting.images.closed_form.uce import Uce

    def eraser(concept: Concept) -> ClosedForm:
        return Rece(Uce(_instead(concept, instead), keep, ridge), derive, rounds)

    fit = _ClosedFormFit(eraser, run.count, run.seed)
    fit = fit.keeping(preserve, preserve_file, None, rank, least_share)
    if judge is not None:
        fit = replace(fit, judging=_Judging(judge, images, steps, guidance))
    run.save(fit)


def trce(
    run: GatedIfAsked,
    instead: Annotated[
        str | None,
        typer.Option(
            help="What the safe twin of a prompt has in the concept's place; without it the first "
            "of the file's `instead`, or of its `replacements`."
        ),
    ] = None,
    keep: Annotated[float, typer.Option(min=0, max=100, help="Weight of ordinary prompts (η).")] = (
        0.01
    ),
    ridge: Ridge = 1e-3,
    token_weight: Annotated[
        float,
        typer.Option(min=0, max=1, help="Weight of the other tokens of a prompt; 0 as published."),
    ] = 0.0,
    prompts: Prompts = None,
    preserve: Preserve = None,
    preserve_file: PreserveFile = None,
    rank: Rank = 64,
    least_share: LeastShare = 0.9,
) -> None:
    """Fit TRCE's first stage: the end mark of a prompt becomes that of its safe twin."""
    from guard.fitting.images.closed_form.trce import Trce

    def eraser(concept: Concept) -> ClosedForm:
        twin = _instead(concept, instead) or concept.replacements[0]
        return Trce(twin, keep, ridge, token_weight)

    fit = _ClosedFormFit(eraser, run.count, run.seed)
    fit = fit.keeping(preserve, preserve_file, prompts, rank, least_share)
    run.save(fit)


def realera(
    run: GatedIfAsked,
    instead: Instead = None,
    near: Annotated[
        float, typer.Option(min=-1, max=1, help="The lowest cosine of a neighbour to its state.")
    ] = 0.8,
    far: Annotated[
        float, typer.Option(min=-1, max=1, help="The lowest cosine of samples that are pinned.")
    ] = 0.5,
    radius: Annotated[
        float,
        typer.Option(min=0.01, max=10, help="How far a neighbour may be, in lengths of its state."),
    ] = 1.0,
    samples: Annotated[
        int, typer.Option(min=1, max=100, help="Neighbours of each state, and as many pinned.")
    ] = 4,
    directions: Annotated[
        int,
        typer.Option(
            min=0, max=4096, help="Principal directions of ordinary states; 0: all alike."
        ),
    ] = 64,
    keep: Keep = 0.1,
    ridge: Ridge = 0.1,
    prompts: Prompts = None,
    preserve: Preserve = None,
    preserve_file: PreserveFile = None,
    rank: Rank = 64,
    least_share: LeastShare = 0.9,
) -> None:
    """Fit RealEra's closed form: a neighbourhood of the concept is erased, what is beyond stays."""
    from guard.fitting.images.closed_form.realera import RealEra
    from guard.fitting.images.closed_form.uce import Uce

    if not far < near:
        raise DataError(f"--far must be less than --near: {far:g} is not less than {near:g}")

    def eraser(concept: Concept) -> ClosedForm:
        edit = Uce(_instead(concept, instead), keep, ridge)
        return RealEra(edit, near, far, radius, samples, directions, run.seed)

    fit = _ClosedFormFit(eraser, run.count, run.seed)
    fit = fit.keeping(preserve, preserve_file, prompts, rank, least_share)
    run.save(fit)


def _instead(concept: Concept, instead: str | None) -> str:
    return next(iter(concept.instead), "") if instead is None else instead


@dataclass(frozen=True)
class _Judging:
    """The judge that chooses a round, and the images it sees."""

    judge: Path
    images: int
    steps: int | None
    guidance: float | None

    def judged(
        self, image_model: ImageModel, concept: Concept, count: int, seed: int
    ) -> JudgedRounds:
        from guard.evaluation.images.judge import Judge
        from guard.fitting.images.closed_form.rounds import (
            JudgedRounds,
            label_of,
            validation_prompts,
        )
        from guard.fitting.prompts.concept_prompts import prompts_of

        judge = Judge(self.judge)
        steps, guidance = image_model.family.defaults
        return JudgedRounds(
            image_model,
            judge,
            label_of(concept, judge),
            validation_prompts(prompts_of(concept, count, seed), self.images),
            steps if self.steps is None else self.steps,
            guidance if self.guidance is None else self.guidance,
            seed,
        )


@dataclass(frozen=True)
class _ClosedFormFit:
    """The fit of an eraser, as `FitRun` calls it; the concept file says what `eraser` replaces."""

    eraser: Callable[[Concept], ClosedForm]
    count: int
    seed: int
    rank: int = 64
    least_share: float = 0.9
    preserved: tuple[str, ...] = ()
    prompts: tuple[str, ...] | None = None
    judging: _Judging | None = None
    name: str | None = None
    also: tuple[Concept, ...] = ()

    def jointly(
        self, concept_files: list[Path] | None, name: str | None, *, gated: bool
    ) -> _ClosedFormFit:
        """With these concepts in the same edit, under this name. Raises DataError for a file that
        cannot be read, or for options that do not go together."""
        if not concept_files:
            if name is not None:
                raise DataError("--name names several concepts together: give --also too")
            return self
        if name is None or not is_name(name):
            raise DataError(
                "--also erases several concepts by one edit: give --name, what they are called "
                'together, as "objects/weapons"'
            )
        if gated:
            raise DataError(
                "--gated is the gate of one concept: leave out --also, fit each concept for "
                "itself, and name their guards in one policy"
            )
        return replace(self, name=name, also=tuple(read_concept(path) for path in concept_files))

    def keeping(
        self,
        phrases: list[str] | None,
        concept_files: list[Path] | None,
        prompts: Path | None,
        rank: int,
        least_share: float,
    ) -> _ClosedFormFit:
        """With these options. Raises DataError for a file that cannot be read."""
        others = [read_concept(path) for path in concept_files or []]
        return replace(
            self,
            preserved=(*(phrases or []), *(p for other in others for p in other.phrases.train)),
            prompts=None if prompts is None else tuple(texts(read_rows(prompts, RetainPrompt))),
            rank=rank,
            least_share=least_share,
        )

    def __call__(
        self,
        image_model: ImageModel,
        concept: Concept,
        encoded: EncodedConcept | None,
        rates: PromptRates,
        progress: Stages,
    ) -> Artifact:
        from guard.fitting.images.closed_form.fit import OverlayRequest, fit_closed_form
        from guard.fitting.images.closed_form.joint import Joint
        from guard.fitting.prompts.concept_prompts import safe_prompts

        judged = None
        if self.judging is not None:
            judged = self.judging.judged(image_model, concept, self.count, self.seed)
        prompts = self.prompts
        if prompts is None:
            prompts = tuple(safe_prompts(concept, self.count, self.seed))
        request = OverlayRequest(self.rank, self.least_share, self.preserved, prompts)
        eraser = self.eraser(concept)
        if self.name is not None:
            eraser = Joint([(each, self.eraser(each)) for each in (concept, *self.also)])
            concept = concept.model_copy(update={"name": self.name, "description": ""})
        return fit_closed_form(
            image_model, concept, encoded, rates, eraser, request, progress, judged
        )
