"""`guard eval images` and `guard eval bare`: images, judged by a model that no fit has used."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guard.commands.eval.options import (
    AsJson,
    Concepts,
    ConfigFile,
    Methods,
    Number,
    Out,
    Steps,
    SuiteFile,
    SuiteOptions,
    load_judges,
)
from guard.commands.eval.output import about, write_report
from guard.errors import DataError
from guard.reporting.progress import stages

if TYPE_CHECKING:
    from guard.config.schema import Config
    from guard.evaluation.images.interface import ImageGenerator
    from guard.evaluation.images.row_tensors import Tensors
    from guard.evaluation.images.suite import ImageSuite


def images(
    context: typer.Context,
    suite: SuiteFile,
    config: ConfigFile = Path("config.toml"),
    methods: Methods = None,
    concepts: Concepts = None,
    images: Number = None,
    steps: Steps = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """How often each method lets the concept through, and what else it changes.

    Writes SUITE.images.json and SUITE.images.html. An interrupted run continues from
    SUITE.results.jsonl. An image that no guard changes is that of the bare model, generated once.
    """
    # reports are named as the command was called: its first name was `pictures`
    ending = str(context.info_name)
    _evaluate(
        SuiteOptions(suite, config, methods, concepts, images, steps, out, as_json), ending=ending
    )


def bare(
    suite: SuiteFile,
    config: ConfigFile = Path("config.toml"),
    images: Annotated[
        int | None,
        typer.Option("--images", "--pictures", min=1, help="Images of each kind; all if left out."),
    ] = None,
    steps: Steps = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Whether the bare model's images show what the prompts ask for.

    Runs on the suite's prompts without a concept; writes SUITE.bare.json and SUITE.bare.html.
    """
    options = SuiteOptions(suite, config, None, None, images, steps, out, as_json)
    _evaluate(options, ending="bare", only_bare=True)


def _evaluate(options: SuiteOptions, *, ending: str, only_bare: bool = False) -> None:
    from guard.config.schema import load_config
    from guard.evaluation.images.cells import CellResults
    from guard.evaluation.images.costs import costs_of
    from guard.evaluation.images.evaluation import ImageEvaluation
    from guard.evaluation.images.report import ImageReport
    from guard.evaluation.images.row_tensors import beside
    from guard.evaluation.images.suite import load_suite, read_prompts

    suite = load_suite(options.suite)
    suite = options.applied_to(suite, "bare_images" if only_bare else "images")
    judges = load_judges(suite)
    rows = read_prompts(suite, judges.judge)
    if only_bare:
        rows = [row for row in rows if not row.concept]
    if options.concepts is not None:
        concepts = options.selected_concepts(row.concept for row in rows if row.concept)
        rows = [row for row in rows if row.concept in concepts]
    if not rows:
        raise DataError(f"{options.suite}: has no prompts for {ending}")
    config = load_config(options.config)
    started = time.monotonic()
    tensors = beside(suite.prompts, rows)
    generator = _generator(config, suite, tensors)
    results = CellResults(options.folder / f"{options.name}.results.jsonl")
    with stages() as progress:
        cells = ImageEvaluation(suite, generator, judges, results).run(rows, progress)
    ours = None if only_bare else suite.ours
    costs = costs_of(config, suite, cells)
    report = ImageReport(cells, ours, len(judges.judge.concepts), suite.parts, costs)
    seconds = sum(result.seconds for item in cells for result in item.results.values())
    facts = about(
        options,
        suite,
        judges.judge,
        took_s=round(time.monotonic() - started, 1),
        drawing_s=round(seconds, 1),
    )
    write_report(options, suite, report, facts, ending=ending, title="Images")


def _generator(config: Config, suite: ImageSuite, tensors: Tensors) -> ImageGenerator:
    """What generates the images of the suite's model, by its kind. Raises GuardError."""
    from guard.models.sources import resolve_source
    from steering.engines.transformers.image_tokens import writes_images

    sources = {entry.name: entry.source for entry in config.models}
    if writes_images(Path(resolve_source(sources.get(suite.model, suite.model)))):
        from guard.evaluation.images.token_generator import TokenImageGenerator

        return TokenImageGenerator.load(config, suite)
    from guard.evaluation.images.generator import EngineImageGenerator

    generator = EngineImageGenerator.load(config, suite)
    generator.bring(tensors)
    return generator
