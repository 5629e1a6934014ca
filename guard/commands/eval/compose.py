"""`guard eval compose`: the best pair of fitted guards of a concept."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

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
from guard.commands.eval.output import about, written_report
from guard.config.schema import Config, load_config
from guard.errors import DataError
from guard.reporting.progress import Stages, stages

if TYPE_CHECKING:
    from guard.data.prompts import ImagePrompt
    from guard.evaluation.images.composition import Combination
    from guard.evaluation.images.judge import Judges
    from guard.evaluation.images.suite import ImageSuite

_PLACE = "{concept}"


def compose(
    suite: SuiteFile,
    concept: Annotated[
        str,
        typer.Option(
            "--concept",
            "--concepts",
            help="The concept, as the suite's prompts name it; several are separated by commas.",
        ),
    ],
    guards: Annotated[
        str,
        typer.Option(
            help="Guards of the configuration for it, separated by commas; {concept} stands for "
            "each concept."
        ),
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
    the pair that is chosen plays its prompts, judged by its judge. Each concept has a pair of its
    own. Writes SUITE.CONCEPT.compose, .json and .html; an interrupted run continues.
    """
    options = SuiteOptions(suite, config, None, concept, images, steps, out, as_json)
    concepts = list(dict.fromkeys(name.strip() for name in concept.split(",")))
    if len(concepts) > 1 and _PLACE not in guards:
        raise DataError(
            f"--guards {guards}: name guards of each concept, as in {_PLACE}-cgce,{_PLACE}-irece"
        )
    played = _Played.of(options, choose)
    # what is missing is told before anything is played
    tried = {name: _tried(played, name, guards) for name in concepts}
    with stages() as progress:
        reports = {
            name: _composed(played, name, tried[name], least_same, progress) for name in concepts
        }
    if as_json:
        content: Any = reports if len(reports) > 1 else next(iter(reports.values()))
        print(json.dumps(content, indent=2, ensure_ascii=False))
    elif len(reports) > 1:
        Console().print(_chosen(reports))


@dataclass(frozen=True)
class _Played:
    """What is played for every concept: the suite that a pair is chosen by, the one that it is
    measured with, and their prompts."""

    options: SuiteOptions
    settings: Config
    judges: Judges
    trying: ImageSuite
    testing: ImageSuite
    validation: Sequence[ImagePrompt]
    test: Sequence[ImagePrompt]

    @classmethod
    def of(cls, options: SuiteOptions, choose: int) -> _Played:
        from guard.evaluation.images.suite import load_suite, read_prompts

        suite = options.applied_to(load_suite(options.suite))
        if not suite.validation:
            raise DataError(
                f"{options.suite}: has no `validation` prompts to choose by: name files"
            )
        judges = load_judges(suite)
        changes = {"prompts": suite.validation, "images": choose, "verify": 0}
        trying = suite.model_copy(update=changes)
        validation, test = (read_prompts(each, judges.judge) for each in (trying, suite))
        settings = load_config(options.config)
        return cls(options, settings, judges, trying, suite, validation, test)

    def prompts(self, concept: str) -> tuple[list[ImagePrompt], list[ImagePrompt]]:
        """Of validation and test. Raises DataError where there are none."""
        found = []
        for name, rows in (("validation", self.validation), ("prompts", self.test)):
            found.append([row for row in rows if row.concept == concept])
            if not found[-1]:
                raise DataError(f"{self.options.suite}: `{name}` has no prompts for {concept!r}")
        return found[0], found[1]


def _tried(played: _Played, concept: str, guards: str) -> list[Combination]:
    from guard.evaluation.images.composition import combinations_of

    played.prompts(concept)
    names = [name.strip().replace(_PLACE, concept) for name in guards.split(",")]
    return combinations_of(names, played.settings)


def _composed(
    played: _Played,
    concept: str,
    tried: Sequence[Combination],
    least_same: float,
    progress: Stages,
) -> dict[str, Any]:
    from guard.evaluation.images.cells import CellResults
    from guard.evaluation.images.composition import (
        CompositionReport,
        best_pair,
        choosing_judges,
        suite_of,
        tried_on,
        with_policies,
    )
    from guard.evaluation.images.costs import costs_of
    from guard.evaluation.images.evaluation import ImageEvaluation
    from guard.evaluation.images.generator import EngineImageGenerator

    options, judges = played.options, played.judges
    chooser = choosing_judges(judges)
    rows, test = played.prompts(concept)
    settings = with_policies(played.settings, tried)
    started = time.monotonic()
    results = CellResults(options.folder / f"{options.name}.{concept}.results.jsonl")
    trying = suite_of(played.trying, tried, tried[-1])
    generator = EngineImageGenerator.load(settings, trying)
    cells = ImageEvaluation(trying, generator, chooser, results).run(rows, progress)
    validated = tried_on(cells, tried)
    chosen = best_pair(validated, least_same)
    testing = suite_of(played.testing, [chosen, *chosen.parts], chosen)
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
    return written_report(options, testing, report, facts, ending=ending, title="Composition")


def _chosen(reports: dict[str, dict[str, Any]]) -> Table:
    """The pair of each concept, with the sum of errors that it was chosen by."""
    table = Table("concept", "pair", "sum of errors, validation")
    for concept, report in reports.items():
        errors = {tuple(row["guards"]): row["errors"]["value"] for row in report["validation"]}
        pair = report["chosen"]
        table.add_row(concept, " + ".join(pair), f"{errors[tuple(pair)]:.1%}")
    return table
