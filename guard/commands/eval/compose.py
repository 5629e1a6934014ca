"""`guard eval compose`: the best pair of fitted guards of a concept."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from guard.commands.eval.options import (
    AsJson,
    ConfigFile,
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


def compose(
    suite: SuiteFile,
    concept: Annotated[str, typer.Option(help="The concept, as the suite's prompts name it.")],
    guards: Annotated[
        str, typer.Option(help="Guards of the configuration for it, separated by commas.")
    ],
    config: ConfigFile = Path("config.toml"),
    least_same: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Leave out pairs that keep fewer clean images as they are."
        ),
    ] = 0.0,
    choose: Annotated[
        int, typer.Option(min=1, help="Images of each kind and combination for the choice.")
    ] = 20,
    images: Number = None,
    steps: Steps = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Choose the pair of guards with the lowest sum of errors, and measure it on other prompts.

    Every guard and every pair plays the suite's validation prompts, judged by its second opinion;
    the pair that is chosen plays its prompts, judged by its judge. Writes SUITE.CONCEPT.compose,
    .json and .html; an interrupted run continues.
    """
    options = SuiteOptions(suite, config, None, concept, images, steps, out, as_json)
    _compose(options, concept, [name.strip() for name in guards.split(",")], choose, least_same)


def _compose(
    options: SuiteOptions, concept: str, guards: list[str], choose: int, least_same: float
) -> None:
    from guard.config.schema import load_config
    from guard.evaluation.images.cells import CellResults
    from guard.evaluation.images.composition import (
        CompositionReport,
        best_pair,
        choosing_judges,
        combinations_of,
        suite_of,
        tried_on,
        with_policies,
    )
    from guard.evaluation.images.costs import costs_of
    from guard.evaluation.images.evaluation import ImageEvaluation
    from guard.evaluation.images.generator import EngineImageGenerator
    from guard.evaluation.images.suite import load_suite, read_prompts

    suite = options.applied_to(load_suite(options.suite))
    if not suite.validation:
        raise DataError(f"{options.suite}: has no `validation` prompts to choose by: name files")
    judges = load_judges(suite)
    chooser = choosing_judges(judges)
    trying = suite.model_copy(update={"prompts": suite.validation, "images": choose, "verify": 0})
    rows, test = (
        [row for row in read_prompts(each, judges.judge) if row.concept == concept]
        for each in (trying, suite)
    )
    for name, found in (("validation", rows), ("prompts", test)):
        if not found:
            raise DataError(f"{options.suite}: `{name}` has no prompts for {concept!r}")
    settings = load_config(options.config)
    tried = combinations_of(guards, settings)
    settings = with_policies(settings, tried)
    started = time.monotonic()
    name = f"{options.name}.{concept}"
    results = CellResults(options.folder / f"{name}.results.jsonl")
    with stages() as progress:
        trying = suite_of(trying, tried, tried[-1])
        generator = EngineImageGenerator.load(settings, trying)
        cells = ImageEvaluation(trying, generator, chooser, results).run(rows, progress)
        validated = tried_on(cells, tried)
        chosen = best_pair(validated, least_same)
        testing = suite_of(suite, [chosen, *chosen.parts], chosen)
        cells = ImageEvaluation(testing, generator, judges, results).run(test, progress)
    costs = costs_of(settings, testing, cells)
    report = CompositionReport(cells, chosen, validated, len(judges.judge.concepts), costs)
    facts = about(
        options,
        testing,
        judges.judge,
        concept=concept,
        chosen_by=chooser.judge.digest,
        took_s=round(time.monotonic() - started, 1),
    )
    ending = f"{concept}.compose"
    write_report(options, testing, report, facts, ending=ending, title="Composition")
