"""`guard new` for an image model: a draft of the concept in words, its guards, and their report."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from guard.commands.fit.output import print_written
from guard.commands.guards import POLICY, config_of
from guard.config.schema import ModelConfig
from guard.errors import DataError
from guard.fitting.files import save_policy, write_report
from guard.models.recipes import RECIPES
from guard.reporting.progress import stages

if TYPE_CHECKING:
    from guard.evaluation.images.judge import Judge
    from guard.fitting.images.drafts.fit import Fits
    from guard.fitting.images.drafts.report import Outcome
    from guard.fitting.prompts.rates import PromptRates
    from guard.models.images import ImageModel


def new_images(
    concept: str,
    model: str,
    out: Path | None,
    *,
    aliases: Sequence[str],
    about: Sequence[Path],
    rates: PromptRates,
    steps: int | None,
    guidance: float | None,
    judge: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Draft, fit, evaluate and write. Raises GuardError where no guard can be fitted."""
    from guard.fitting.images.drafts.naming import named

    name = named(concept, aliases, about)
    base = out or Path("guards") / name.slug
    whole = base.with_name(f"{base.name.removesuffix('.safetensors')}.safetensors")
    judging = _judge(model, judge)

    from guard.fitting.images.drafts.draft import draft
    from guard.fitting.images.drafts.evaluation import evaluate
    from guard.fitting.images.drafts.fit import fit_all
    from guard.fitting.images.drafts.report import Outcome, prompt_lines
    from guard.models.images import ImageModel
    from guard.reporting.page import write_text

    image_model = ImageModel.load(model, device=device)
    started = time.monotonic()
    with stages() as progress:
        drafted = draft(image_model, name, progress)
        # written first: where a fit fails, it can be edited
        concept_file = whole.with_name(f"{whole.stem}.concept.json")
        write_text(concept_file, drafted.concept.model_dump_json(indent=1) + "\n")
        prompts = whole.with_name(f"{whole.stem}.test.jsonl")
        write_text(prompts, prompt_lines(drafted.prompts))
        fits = fit_all(
            image_model, drafted.concept, progress, rates=rates, steps=steps, guidance=guidance
        )
        settings = ModelConfig(name="model", source=model, engine="diffusers", device=device)
        paths = _saved(fits, whole, image_model, settings)
        evaluation = evaluate(
            image_model,
            config_of(list(paths.values()), settings),
            POLICY,
            drafted.prompts,
            progress,
            guidance=guidance,
            judge=judging,
        )
    guards = {method: path.stem for method, path in paths.items()}
    written = [concept_file, prompts, *paths.values(), save_policy([*paths.values()], whole)]
    outcome = Outcome(drafted, fits, evaluation, guards)
    _report(outcome, whole, written, time.monotonic() - started, as_json=as_json)


def _judge(model: str, judge: Path | None) -> Judge | None:
    """The judge that was given, or the one that comes with the model."""
    recipe = RECIPES.get(model)
    path = judge or (recipe.judge if recipe else None)
    if path is None or (judge is None and not path.is_file()):
        return None
    from guard.evaluation.images.judge import Judge

    return Judge(path)


def _saved(
    fits: Fits, out: Path, image_model: ImageModel, settings: ModelConfig
) -> dict[str, Path]:
    """Save the artifacts beside `out`; those that cannot act on this pipeline become failures."""
    from guard.plans.images import ImagePlans

    paths = {}
    for method, artifact in [*fits.artifacts.items()]:
        path = out.with_name(f"{out.stem}-{method}.safetensors")
        artifact.save(path)
        plan = ImagePlans(config_of([path], settings), image_model.family, name="model")[POLICY]
        if plan.refuses:
            path.unlink()
            del fits.artifacts[method]
            fits.failed[method] = "; ".join(plan.broken.values())
        else:
            paths[method] = path
    if not paths:
        why = "; ".join(f"{method}: {reason}" for method, reason in fits.failed.items())
        raise DataError(f"no guard can act on {image_model.name}: {why}")
    return paths


def _report(
    outcome: Outcome, out: Path, written: Sequence[Path], took_s: float, *, as_json: bool
) -> None:
    from guard.fitting.images.drafts import report as reports
    from guard.reporting.sheets import write_sheet

    report = reports.as_json(outcome, took_s)
    page = write_report(out, report, reports.as_page(outcome))
    sheet = out.with_suffix(".png")
    write_sheet(sheet, reports.sheet(outcome))
    if as_json:
        print(json.dumps(report, indent=2))
        return
    console = Console()
    for figure, value in report["figures"].items():
        console.print(f"{figure.replace('_', ' ')}: {value}", highlight=False, markup=False)
    for note in report["notes"]:
        console.print(note, highlight=False, markup=False)
    console.print(report["judgement"], highlight=False, markup=False)
    print_written(console, *written, page, sheet)
