"""`guard fit cgce`: from a concept file and an image model to an artifact with its report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from guard.commands.fit.images.output import finish
from guard.commands.fit.output import require_artifact_name
from guard.data.concept import read_concept
from guard.data.prompts import PromptPair, read_rows
from guard.models.kind_checks import source_of
from guard.reporting.progress import stages


def cgce(
    model: Annotated[str, typer.Option(help="An added model, a directory or a hub name.")],
    concept_file: Annotated[Path, typer.Option(help="The concept in words, JSON.")],
    out: Annotated[Path, typer.Option(help="Artifact to write; the report goes beside it.")],
    pairs: Annotated[
        Path | None,
        typer.Option(help="More pairs of unsafe and safe prompts, JSON Lines."),
    ] = None,
    count: Annotated[int, typer.Option(min=100, help="Unsafe prompts to make.")] = 1200,
    fpr: Annotated[
        float, typer.Option(min=1e-4, max=0.5, help="False-positive rate on far prompts.")
    ] = 0.005,
    near_fpr: Annotated[
        float, typer.Option(min=1e-4, max=0.5, help="False-positive rate on hard negatives.")
    ] = 0.03,
    folds: Annotated[
        int,
        typer.Option(
            min=2,
            max=16,
            help="Classifiers of the ensemble; each is trained without its fold of the prompts, "
            "and calibrated on that fold.",
        ),
    ] = 4,
    rounds: Annotated[
        int, typer.Option(min=0, max=20, help="Rounds of the search for prompts; 0 for none.")
    ] = 3,
    searched: Annotated[
        int, typer.Option(min=0, help="Prompts of each round, labelled by the denoiser.")
    ] = 400,
    bf16: Annotated[
        bool,
        typer.Option(
            help="Compute the denoiser in bfloat16 while searching: far slower on a CPU without it."
        ),
    ] = False,
    noise: Annotated[float, typer.Option(min=0, help="Noise on states while training.")] = 0.5,
    radius: Annotated[
        float, typer.Option(min=0, max=1, help="Radius of the attacks while training.")
    ] = 0.1,
    rate: Annotated[
        float, typer.Option(min=1e-4, max=1, help="Length of a step, as a share of the prompt's.")
    ] = 0.05,
    steps: Annotated[int, typer.Option(min=1, max=200, help="Steps at most.")] = 30,
    confine: Annotated[
        bool, typer.Option(help="Descend only where unsafe prompts and their partners differ.")
    ] = True,
    rank: Annotated[int, typer.Option(min=1, max=64, help="Directions in which they do.")] = 3,
    pull: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of the way to the nearest safe token, first step."),
    ] = 0.5,
    share: Annotated[
        float, typer.Option(min=0, max=1, help="Tokens with less of the gradient stay.")
    ] = 0.0,
    depth: Annotated[
        float, typer.Option(min=0, max=1, help="Descend to this quantile of safe prompts' scores.")
    ] = 0.1,
    seed: Annotated[int, typer.Option(help="Of prompts, heads and samples.")] = 0,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="A draft in a fraction of the time: without the search for prompts."
        ),
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Fit a CGCE guard: classifiers of the prompt's embedding, by which it is refined.

    Writes NAME.safetensors, NAME.report.json and NAME.report.html.
    """
    concept = read_concept(concept_file)
    pair_rows = read_rows(pairs, PromptPair) if pairs else []
    require_artifact_name(out)
    source_of(model, "images")

    from classifiers.training import Recipe
    from guard.fitting.images.cgce import Descent, fit_cgce
    from guard.fitting.prompts.concept_prompts import folds_of, labelled
    from guard.fitting.prompts.rates import PromptRates, require_enough
    from guard.fitting.prompts.search import Search
    from guard.models.images import ImageModel

    prompts = [*folds_of(concept, count, folds, seed), *labelled(pair_rows, folds)]
    rates = PromptRates(fpr, near_fpr)
    held_out = (prompt.kind for prompt in prompts if prompt.split != "train")
    require_enough(held_out, rates)
    image_model = ImageModel.load(model, device=device)
    started = time.monotonic()
    with stages() as progress:
        fit = fit_cgce(
            image_model,
            concept,
            prompts,
            rates=rates,
            recipe=Recipe(noise=noise, radius=radius, seed=seed),
            descent=Descent(
                rate=rate,
                steps=steps,
                confine=confine,
                rank=rank,
                pull=pull,
                share=share,
                depth=depth,
            ),
            search=Search(rounds=0 if quick else rounds, count=searched, bf16=bf16),
            progress=progress,
        )
    finish(fit, concept, out, time.monotonic() - started, as_json=as_json, quick=quick)
