"""`guard fit safe-guidance|negative-prompt|contrastive`: guards of the guidance."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from guard.commands.fit.images.run import Fit, GatedIfAsked
from guard.data.concept import Concept
from guard.errors import DataError
from guard.reporting.progress import Stages
from steering.methods import MOST_NOISE

if TYPE_CHECKING:
    from guard.artifact import Artifact
    from guard.fitting.images.training_free import EncodedConcept
    from guard.fitting.prompts.rates import PromptRates
    from guard.models.images import ImageModel

Phrase = Annotated[
    str | None,
    typer.Option(help="The phrase to guide away from, instead of the concept's first one."),
]


def safe_guidance(
    run: GatedIfAsked,
    preset: Annotated[
        Literal["weak", "medium", "strong", "max"], typer.Option(help="The paper's configurations.")
    ] = "medium",
    phrase: Phrase = None,
) -> None:
    """Fit safe latent diffusion: guidance away from the concept while an image is generated."""
    fit = _guide("safe-guidance", phrase, preset)
    run.save(fit)


def negative_prompt(
    run: GatedIfAsked,
    phrase: Phrase = None,
) -> None:
    """Fit a negative prompt: the concept in place of the empty prompt."""
    fit = _guide("negative-prompt", phrase, None)
    run.save(fit)


def contrastive(
    run: GatedIfAsked,
    preset: Annotated[
        Literal["ant", "trce", "all-but-one"], typer.Option(help="The published guard to follow.")
    ] = "ant",
    phrase: Phrase = None,
    pair: Annotated[
        str | None,
        typer.Option(
            help="The phrase to guide to instead, of trce and all-but-one; without it the first of "
            "the file's `instead`, or of its `replacements`."
        ),
    ] = None,
    weight: Annotated[
        float | None, typer.Option(min=0.01, max=100, help="Of the term, in place of the preset's.")
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(
            help="The noise levels (noise over signal) between which it acts, as LOW:HIGH, each of "
            "which may be left out; in place of the preset's."
        ),
    ] = None,
) -> None:
    """Fit contrastive guidance: from the concept's prediction to another, at some noise levels."""
    from guard.fitting.images.training_free import fit_contrastive
    from steering.methods.contrastive import PRESETS

    contrast = PRESETS[preset]
    if pair is not None and not contrast.paired:
        raise DataError(f"--pair: {preset} has no counterpart: take another --preset")
    if weight is not None:
        contrast = replace(contrast, weight=weight)
    if window is not None:
        low, high = _window(window)
        contrast = replace(contrast, low=low, high=high)

    def fit(
        image_model: ImageModel,
        concept: Concept,
        encoded: EncodedConcept | None,
        rates: PromptRates,
        _progress: Stages,
    ) -> Artifact:
        counterparts = (pair, *concept.instead, *concept.replacements)
        return fit_contrastive(
            image_model,
            concept,
            encoded,
            rates,
            phrase=phrase or concept.phrases.train[0],
            counterpart=next(text for text in counterparts if text),
            contrast=contrast,
            preset=preset,
        )

    run.save(fit)


def _window(text: str) -> tuple[float | None, float | None]:
    """The bounds in LOW:HIGH. Raises DataError."""
    bounds = text.split(":")
    try:
        low, high = (float(bound) if bound.strip() else None for bound in bounds)
    except ValueError:
        raise DataError(
            f"--window: {text!r} is not LOW:HIGH, such as 0.5:6.2, :6.2 or 1.5:"
        ) from None
    if not all(bound is None or 0.0 <= bound <= MOST_NOISE for bound in (low, high)):
        raise DataError(f"--window: noise levels lie in 0..{MOST_NOISE:g}")
    if low is not None and high is not None and low > high:
        raise DataError(f"--window: {low:g} is over {high:g}: the lower bound comes first")
    return low, high


def _guide(method: str, phrase: str | None, preset: str | None) -> Fit:
    from guard.fitting.images.training_free import fit_guide

    def fit(
        image_model: ImageModel,
        concept: Concept,
        encoded: EncodedConcept | None,
        rates: PromptRates,
        _progress: Stages,
    ) -> Artifact:
        return fit_guide(
            image_model,
            concept,
            encoded,
            rates,
            method=method,
            phrase=phrase or concept.phrases.train[0],
            preset=preset,
        )

    return fit
