"""`guard eval m-erasure`: M-ErasureBench's five ways to bring a concept back."""

from __future__ import annotations

import platform
import time
from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from guard.commands.eval.images import (
    AsJson,
    ConfigFile,
    Number,
    Out,
    Steps,
    SuiteFile,
    chosen,
    tell,
)
from guard.errors import DataError
from guard.reporting.progress import stages


def m_erasure(
    suite: SuiteFile,
    config: ConfigFile = Path("config.toml"),
    scenarios: Annotated[
        str | None,
        typer.Option(
            help="Of text, learned-black-box, learned-white-box, inverted-black-box and "
            "inverted-white-box, with commas; all where left out."
        ),
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Methods to play, with commas; all where left out.")
    ] = None,
    concepts: Annotated[
        str | None, typer.Option(help="Concepts to play, with commas; all where left out.")
    ] = None,
    images: Number = None,
    steps: Steps = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """How often a concept comes back by text, learned embeddings and inverted latents.

    Makes the attacks that are missing and keeps them; writes SUITE.m-erasure.json and
    SUITE.m-erasure.html. A run that was stopped goes on where it was.
    """
    from guard.config.schema import load_config
    from guard.evaluation.images.cells import CellResults
    from guard.evaluation.images.evaluation import ImageEvaluation, Judges
    from guard.evaluation.images.generator import EngineImageGenerator
    from guard.evaluation.images.judge import Judge
    from guard.evaluation.m_erasure.attacks import Attacks
    from guard.evaluation.m_erasure.report import ErasureReport
    from guard.evaluation.m_erasure.scenarios import SCENARIOS, TEXT
    from guard.evaluation.m_erasure.suite import load_erasure_suite, read_scenes, read_text_prompts

    given = load_erasure_suite(suite)
    played = chosen(methods, given.methods) if methods else given.methods
    changes = {
        "images": images,
        "steps": steps,
        "methods": played,
        "ours": given.ours if given.ours in played else next(iter(played)),
    }
    own = given.model_copy(update={k: v for k, v in changes.items() if v is not None})
    every = {scenario.name: scenario for scenario in SCENARIOS}
    wanted = chosen(scenarios, every) if scenarios else every
    judge = Judge(own.judge)
    second = Judge(own.second_opinion) if own.second_opinion else None
    scenes = read_scenes(own, judge)
    if concepts is not None:
        known = chosen(concepts, dict.fromkeys(scene.concept for scene in scenes))
        scenes = [scene for scene in scenes if scene.concept in known]
    rows = read_text_prompts(own, judge, scenes)
    if TEXT.name not in wanted:
        text = {*TEXT.kinds, *TEXT.beside}
        rows = [row for row in rows if row.kind not in text]
    settings = load_config(config)
    base, name = out or suite.parent, suite.stem
    began = time.monotonic()
    drawer = EngineImageGenerator.load(settings, own)
    with stages() as progress:
        attacks = Attacks(own, drawer, scenes, progress)
        for scenario in wanted.values():
            rows += attacks.rows(scenario)
        if not rows:
            raise DataError(f"{suite}: has nothing to play")
        drawer.bring(attacks.tensors)
        results = CellResults(base / f"{name}.results.jsonl")
        evaluation = ImageEvaluation(own, drawer, Judges(judge, second), results, distances=True)
        games = evaluation.run(rows, progress)
    named = dict.fromkeys(scene.concept for scene in scenes)
    policies = [policy for m in own.methods for c in named if (policy := own.policy(m, c))]
    fitted = drawer.calibrations("irece", policies)
    report = ErasureReport(games, own.ours, len(judge.concepts), own.pairs, fitted)
    about = {
        "suite": name,
        "model": own.model,
        "steps": own.steps,
        "guidance": own.guidance,
        "pictures": own.images,
        "scenarios": [*wanted],
        "concepts": [*named],
        "judge": judge.digest,
        "date": date.today().isoformat(),
        "machine": platform.machine(),
        "took_s": round(time.monotonic() - began, 1),
    }
    subtitle = (
        f"Model {own.model}, {own.steps} steps, guidance {own.guidance:g}, "
        f"judged by {own.judge.name}, {about['date']}"
    )
    tell(report, base / f"{name}.m-erasure", about, f"M-ErasureBench: {name}", subtitle, as_json)
