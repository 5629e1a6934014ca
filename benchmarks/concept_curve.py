"""What the guards of several concepts at once leave of everything else.

    python -m benchmarks.concept_curve examples/emoji/erasers.toml \\
        --config examples/emoji/fitted/baselines/config.toml \\
        --concepts knife,pistol,bomb,skull,cat,santa-claus,pizza,car,rose,twemoji \\
        --methods uce,rece-cgce-gated,uce-joint=first-{count}-uce --counts 1,2,5,10 --images 100

For each method and count, one policy carries the method's guards of the first so many concepts, or
the one guard of all of them, where the name of a method's policy has their `{count}`. The prompts
are the suite's own without a concept, and of these the ones that ask for none of `--concepts`: the
same for all counts. Beside them stand the direct prompts of the first concept, which every policy
guards. Finished cells are kept in OUT/concept-curve.results.jsonl.
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
    parser.add_argument(
        "--methods", required=True, help="of the suite, or NAME=POLICY with {concept} or {count}"
    )
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
    methods = policy_names(suite, arguments.methods.split(","))
    policies = {
        f"{method}, {count}": together(config, policy, concepts[:count])
        for method, policy in methods.items()
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


def policy_names(suite: ImageSuite, methods: Sequence[str]) -> dict[str, str]:
    """The policy of each method, with `{concept}` or `{count}`: that of the suite, or what stands
    behind its name. Raises DataError for a method that the suite lacks."""
    names = dict(suite.methods)
    for method in methods:
        name, given, policy = method.partition("=")
        if given:
            names[name] = policy
        elif name not in names:
            raise DataError(f"no method {method!r}: the suite has {', '.join(suite.methods)}")
    return {name: names[name] for name in (method.partition("=")[0] for method in methods)}


def together(config: Config, policy: str, concepts: Sequence[str]) -> PolicyConfig:
    """One policy with the guards of each concept's `policy`, or with those of the one policy for
    as many concepts. Raises GuardError for a policy that the configuration lacks."""
    counted = policy.replace("{count}", str(len(concepts)))
    names = dict.fromkeys(counted.replace("{concept}", concept) for concept in concepts)
    of_each = [config.policy(name) for name in names]
    guards = tuple(guard for each in of_each for guard in each.guards)
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
