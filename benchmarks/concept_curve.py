"""What the guards of several concepts at once leave of everything else.

    python -m benchmarks.concept_curve examples/emoji/erasers.toml \\
        --config examples/emoji/fitted/baselines/config.toml \\
        --concepts knife,pistol,bomb,skull,cat,santa-claus,pizza,car,rose,twemoji \\
        --methods uce,rece-cgce-gated --counts 1,2,5,10 --images 100

For each method and count, one policy carries the method's guards of the first so many concepts. The
prompts are the suite's own without a concept, and of these the ones that ask for none of
`--concepts`: the same for all counts. Beside them stand the direct prompts of the first concept,
which every policy guards. Finished cells are kept in OUT/concept-curve.results.jsonl.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from guard.commands.eval.options import load_judges
from guard.config.policy_schema import PolicyConfig
from guard.config.schema import Config, load_config
from guard.data.prompts import ImagePrompt
from guard.errors import DataError
from guard.evaluation.images import figures
from guard.evaluation.images.cells import CellResults
from guard.evaluation.images.evaluation import ImageEvaluation
from guard.evaluation.images.figures import EvaluatedCells, Values
from guard.evaluation.images.generator import EngineImageGenerator
from guard.evaluation.images.suite import BARE, ImageSuite, load_suite, read_prompts
from guard.evaluation.images.targets import percent
from guard.evaluation.shares import Estimate, Means, bootstrap
from guard.reporting.progress import stages

OTHERS = "others"
"""The kind of prompts that ask for none of the concepts."""
ASKED = ("single", "pair")
"""Kinds of prompts without a concept whose `asked` is counted."""


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite", type=Path, help="a suite of `guard eval images`")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--concepts", required=True, help="in the order in which they are added")
    parser.add_argument("--methods", required=True, help="methods of the suite")
    parser.add_argument("--counts", default="1,2,5,10")
    parser.add_argument("--images", type=int, default=100, help="of other things")
    parser.add_argument("--direct", type=int, default=20, help="of the first concept")
    parser.add_argument("--out", type=Path, default=Path("."))
    arguments = parser.parse_args()
    concepts = arguments.concepts.split(",")
    counts = [int(count) for count in arguments.counts.split(",")]
    if not 0 < min(counts) <= max(counts) <= len(concepts):
        raise SystemExit(f"--counts: from 1 to {len(concepts)}, the number of --concepts")
    suite = load_suite(arguments.suite)
    judges = load_judges(suite)
    rows = [
        *others(read_prompts(suite, judges.judge), concepts)[: arguments.images],
        *direct(read_prompts(suite, judges.judge), concepts[0])[: arguments.direct],
    ]
    config = load_config(arguments.config)
    policies = {
        f"{method}, {count}": together(config, suite, method, concepts[:count])
        for method in arguments.methods.split(",")
        for count in counts
    }
    config = config.model_copy(update={"policies": {**config.policies, **policies}})
    names = list(policies)
    changes = {"methods": {name: name for name in names}, "ours": names[0], "verify": 0}
    suite = suite.model_copy(update={**changes, "parts": (), "images": len(rows)})
    results = CellResults(arguments.out / "concept-curve.results.jsonl")
    with stages() as progress:
        generator = EngineImageGenerator.load(config, suite)
        cells = ImageEvaluation(suite, generator, judges, results).run(rows, progress)
    Console(width=160).print(report(cells, [BARE, *names]))


def others(rows: Sequence[ImagePrompt], concepts: Sequence[str]) -> list[ImagePrompt]:
    """The prompts without a concept that ask for none of these, of both kinds in turn."""
    mine = {*concepts}
    kinds = [
        [
            row.model_copy(update={"concept": OTHERS, "kind": OTHERS, "kept": row.asked})
            for row in rows
            if row.kind == kind and not row.concept and not mine & {*row.asked, row.style}
        ]
        for kind in ASKED
    ]
    return [row for pair in zip(*kinds, strict=False) for row in pair]


def direct(rows: Sequence[ImagePrompt], concept: str) -> list[ImagePrompt]:
    """The prompts that ask for a concept by its name."""
    return [row for row in rows if row.kind == "direct" and row.concept == concept]


def together(
    config: Config, suite: ImageSuite, method: str, concepts: Sequence[str]
) -> PolicyConfig:
    """One policy with the guards that a method has for each of the concepts.

    Raises DataError for a method that the suite lacks, and GuardError for a policy that the
    configuration lacks.
    """
    if method not in suite.methods:
        raise DataError(f"no method {method!r}: the suite has {', '.join(suite.methods)}")
    names = [suite.methods[method].replace("{concept}", concept) for concept in concepts]
    of_each = [config.policy(name) for name in names]
    guards = tuple(guard for policy in of_each for guard in policy.guards)
    return of_each[0].model_copy(update={"guards": guards})


def kept_ratio(cells: EvaluatedCells, method: str) -> Estimate:
    """The rate at which what was asked for is there, over the bare model's rate."""
    shown = [
        [image.shows_all(row.kept) for row, image in figures.judgements(cells, each, OTHERS)]
        for each in (method, BARE)
    ]

    def ratio(means: Means) -> Values:
        kept, bare = means[OTHERS]
        of_bare: Values = kept / np.where(bare > 0, bare, np.nan)
        return of_bare

    return bootstrap({OTHERS: np.array(shown, dtype=np.float64)}, ratio)


def report(cells: EvaluatedCells, methods: Sequence[str]) -> Table:
    """One row a method and count."""
    table = Table("method, concepts", "others kept, of bare", "others identical", "direct")
    for method in methods:
        others_of = figures.judgements(cells, method, OTHERS)
        table.add_row(
            method,
            percent(kept_ratio(cells, method)),
            str(figures.same(others_of)),
            str(figures.reproduced(figures.judgements(cells, method, "direct"))),
        )
    return table


if __name__ == "__main__":
    main()
