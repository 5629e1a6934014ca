"""`guard eval m-erasure`: M-ErasureBench's five scenarios in which a concept may come back."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

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
    selected,
)
from guard.commands.eval.output import about, write_report
from guard.errors import DataError
from guard.reporting.progress import stages


def m_erasure(
    suite: SuiteFile,
    config: ConfigFile = Path("config.toml"),
    scenarios: Annotated[
        str | None,
        typer.Option(
            help="Of text, learned-black-box, learned-white-box, inverted-black-box and "
            "inverted-white-box, separated by commas; all if left out."
        ),
    ] = None,
    methods: Methods = None,
    concepts: Concepts = None,
    images: Number = None,
    steps: Steps = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """How often a concept comes back by text, learned embeddings and inverted latents.

    Makes missing attacks and keeps them; writes SUITE.m-erasure.json and SUITE.m-erasure.html. An
    interrupted run continues where it was.
    """
    options = SuiteOptions(suite, config, methods, concepts, images, steps, out, as_json)
    _evaluate(options, scenarios)


def _evaluate(options: SuiteOptions, scenarios: str | None) -> None:
    from guard.config.schema import load_config
    from guard.evaluation.images.cells import CellResults
    from guard.evaluation.images.evaluation import ImageEvaluation
    from guard.evaluation.images.generator import EngineImageGenerator
    from guard.evaluation.m_erasure.attacks import Attacks
    from guard.evaluation.m_erasure.report import ErasureReport
    from guard.evaluation.m_erasure.scenarios import SCENARIOS, TEXT
    from guard.evaluation.m_erasure.suite import load_erasure_suite, read_scenes, read_text_prompts

    suite = options.applied_to(load_erasure_suite(options.suite))
    wanted = selected(scenarios, {scenario.name: scenario for scenario in SCENARIOS})
    judges = load_judges(suite)
    scenes = read_scenes(suite, judges.judge)
    if options.concepts is not None:
        known = options.selected_concepts(scene.concept for scene in scenes)
        scenes = [scene for scene in scenes if scene.concept in known]
    rows = read_text_prompts(suite, judges.judge, scenes)
    if TEXT.name not in wanted:
        text_kinds = {*TEXT.kinds, *TEXT.beside}
        rows = [row for row in rows if row.kind not in text_kinds]
    config = load_config(options.config)
    started = time.monotonic()
    generator = EngineImageGenerator.load(config, suite)
    with stages() as progress:
        attacks = Attacks(suite, generator, scenes, progress)
        for scenario in wanted.values():
            rows += attacks.rows(scenario)
        if not rows:
            raise DataError(f"{options.suite}: has no rows for these options: choose others")
        generator.bring(attacks.tensors)
        results = CellResults(options.folder / f"{options.name}.results.jsonl")
        evaluation = ImageEvaluation(suite, generator, judges, results, distances=True)
        cells = evaluation.run(rows, progress)
    concepts = dict.fromkeys(scene.concept for scene in scenes)
    policies = [
        policy
        for method in suite.methods
        for concept in concepts
        if (policy := suite.policy(method, concept))
    ]
    calibrations = generator.calibrations("irece", policies)
    labels = len(judges.judge.concepts)
    gradients = generator.gradients(policies)
    report = ErasureReport(cells, suite.ours, labels, suite.pairs, calibrations, gradients)
    facts = about(
        options,
        suite,
        judges.judge,
        scenarios=[*wanted],
        concepts=[*concepts],
        took_s=round(time.monotonic() - started, 1),
    )
    write_report(options, suite, report, facts, ending="m-erasure", title="M-ErasureBench")
