"""`guard eval mllmu`: unlearning in a vision-language model, as MLLMU-Bench asks about it."""

from __future__ import annotations

import json
import platform
import time
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from guard.commands.eval.options import (
    AsJson,
    ConfigFile,
    DataOut,
    MeasuredModel,
    Policy,
    configured_model,
    measured_policy,
    selected,
)
from guard.config.schema import Config, ModelConfig, load_config
from guard.data.benchmarks.questions import PARTS, Part, digest_of
from guard.data.benchmarks.released import load_benchmark
from guard.errors import DataError
from guard.reporting.progress import stages

if TYPE_CHECKING:
    from guard.evaluation.mllmu.contestants import Contestant
    from guard.evaluation.mllmu.figures import Figure
    from guard.plans.language import LanguagePlans

LIMIT = 6
"""300 questions of the portraits' benchmark, and some 1700 answers where there are baselines."""


def mllmu(
    data: Annotated[
        Path,
        typer.Argument(help="Folder of MLLMU-Bench, of a data set of its form, CLEAR or FIUBench."),
    ],
    policy: Policy = None,
    config: ConfigFile = Path("config.toml"),
    model: MeasuredModel = None,
    share: Annotated[
        int, typer.Option(help="Per cent of the people to forget, as the data set has it.")
    ] = 5,
    part: Annotated[
        str | None,
        typer.Option(
            help="Of forget, test, retain, celebrities and scenes, separated by commas; all if "
            "left out."
        ),
    ] = None,
    limit: Annotated[
        int,
        typer.Option(min=1, help="At most so many questions of each part, task and way of asking."),
    ] = LIMIT,
    options: Annotated[
        Literal["text", "letter"],
        typer.Option(
            help="How options are chosen: text (each one's text is scored as the answer) or letter "
            "(the options are listed, as published)."
        ),
    ] = "text",
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Compare with the baselines, which takes longer.")
    ] = False,
    attack: Annotated[
        bool, typer.Option("--attack", help="Attack the portraits, which takes longer.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of samples, transforms and attacks.")] = 0,
    out: DataOut = None,
    as_json: AsJson = False,
) -> None:
    """What a model still says of forgotten people, asked by portrait, by name and by both.

    Writes POLICY.mllmu.json (every answer) and POLICY.mllmu.html. Answers of the bare model are
    kept beside them and used again.
    """
    settings = load_config(config)
    chosen = measured_policy(settings, policy)
    entry = configured_model(settings, model, config)
    wanted = selected(part, dict.fromkeys(map(str, PARTS)))
    parts: list[Part] = [name for name in PARTS if name in wanted]
    benchmark = load_benchmark(data, share)
    if "forget" not in benchmark.parts:
        raise DataError(f"{data}: has no questions about people to forget at {share} %")

    from guard.evaluation.mllmu import report
    from guard.evaluation.mllmu.asking import asked_questions
    from guard.evaluation.mllmu.figures import figures
    from guard.evaluation.mllmu.run import Extras, evaluate
    from guard.reporting.page import write_text

    base = out or data
    started = time.monotonic()
    asked = asked_questions(benchmark, parts=parts, limit=limit, options=options, seed=seed)
    if not asked:
        raise DataError(f"{data}: has no questions in {part}: it has {', '.join(benchmark.parts)}")
    contestant, plans = _guarded(entry, settings, chosen)
    with stages() as progress:
        result = evaluate(
            benchmark,
            asked,
            contestant,
            folder=base,
            extras=Extras(baselines=baselines, attacks=attack, seed=seed),
            progress=progress,
        )
    about: dict[str, Any] = {
        "policy": chosen,
        "model": entry.name,
        "data": benchmark.name,
        "data_sha256": digest_of(item.question for item in asked),
        "share": share,
        "limit": limit,
        "options": options,
        "seed": seed,
        "questions": len(asked),
        "people_forgotten": len(benchmark.forgotten),
        "guards": [guard.name for guard in plans[chosen].guards],
        "date": date.today().isoformat(),
        "machine": platform.machine(),
        "took_s": round(time.monotonic() - started, 1),
    }
    content = report.as_json(result, about)
    write_text(base / f"{chosen}.mllmu.json", json.dumps(content, indent=1, ensure_ascii=False))
    subtitle = (
        f"Policy {chosen} on {entry.name}, {len(benchmark.forgotten)} people of {benchmark.name} "
        f"forgotten ({share} %), {len(asked)} questions, {about['date']}"
    )
    page = base / f"{chosen}.mllmu.html"
    write_text(page, report.as_page(result, f"Unlearning: {benchmark.name}", subtitle))
    if as_json:
        print(json.dumps(content, indent=2, ensure_ascii=False))
        return
    console = Console()
    console.print(_table(figures(result)))
    console.print(f"wrote {page}", markup=False, highlight=False, soft_wrap=True)


def _guarded(entry: ModelConfig, settings: Config, policy: str) -> tuple[Contestant, LanguagePlans]:
    """The model under the policy. Raises DataError for one that does not take images."""
    from guard.evaluation.mllmu.contestants import Contestant
    from guard.models.chat import TransformersChat
    from guard.plans.language import LanguagePlans
    from steering.methods.steer import loaded

    chat = TransformersChat.configured(entry)
    if not chat.sees:
        raise DataError(
            f"model {entry.name!r} takes no images, which this suite asks about: give --model, or "
            "use guard eval unlearn"
        )
    plans = LanguagePlans(settings, chat.model, name=entry.name)
    plan = plans[policy]
    plan.require_whole()
    rows = plan.rows()
    fitted = [plans.guards[row.name] for row in rows]
    steering = [loaded(each.fitted) for each in fitted if each.method.name == "steer"]
    return Contestant(f"policy {policy}", chat, plans.bank, rows, steering=steering), plans


def _table(rows: list[Figure]) -> Table:
    table = Table("figure", "bare", "value (95 % interval)", "target", "")
    for row in rows:
        reached = "reached" if row.reached else "not reached"
        table.add_row(row.name, row.bare, row.value, row.target, reached)
    return table
