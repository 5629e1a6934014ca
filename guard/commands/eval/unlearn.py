"""`guard eval unlearn`: the effect of a policy on a language model, on prompts no fit has used."""

from __future__ import annotations

import json
import platform
import time
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

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
)
from guard.config.schema import Config, ModelConfig, load_config
from guard.data.prompts import ForgetPrompt, RetainPrompt, read_rows, require_text
from guard.reporting.progress import stages

if TYPE_CHECKING:
    from guard.models.chat import Answers, ChatModel


def unlearn(
    data: Annotated[Path, typer.Argument(help="Folder with forget.jsonl and retain.jsonl.")],
    policy: Policy = None,
    config: ConfigFile = Path("config.toml"),
    model: MeasuredModel = None,
    engine: Annotated[
        Literal["transformers", "vllm"],
        typer.Option(help="The engine that runs the model; vllm is vLLM with the plugin."),
    ] = "transformers",
    out: DataOut = None,
    as_json: AsJson = False,
) -> None:
    """Leaks, rewordings, retain damage and fluency on the test split.

    Writes POLICY.unlearn.json (every answer) and POLICY.unlearn.html.
    """
    forget = read_rows(data / "forget.jsonl", ForgetPrompt)
    retain = read_rows(data / "retain.jsonl", RetainPrompt)
    require_text((*forget, *retain), "guard eval unlearn")
    settings = load_config(config)
    chosen = measured_policy(settings, policy)
    entry = configured_model(settings, model, config)

    from guard.evaluation.unlearn import report
    from guard.evaluation.unlearn.evaluation import evaluate
    from guard.reporting.page import write_text

    load = _in_vllm if engine == "vllm" else _in_transformers
    chat, under_policy = load(entry, settings, config, chosen)
    started = time.monotonic()
    with stages() as progress:
        result = evaluate(chat, under_policy, forget, retain, progress)
    about = {
        "policy": chosen,
        "model": entry.name,
        "engine": engine,
        "data": data.name,
        "date": date.today().isoformat(),
        "machine": platform.machine(),
        "took_s": round(time.monotonic() - started, 1),
    }
    content = report.as_json(result, about)
    base = out or data
    write_text(base / f"{chosen}.unlearn.json", json.dumps(content, indent=1, ensure_ascii=False))
    subtitle = f"Policy {chosen} on {entry.name}, test split of {data.name}, {about['date']}"
    page = base / f"{chosen}.unlearn.html"
    write_text(page, report.as_page(result, f"Unlearning: {data.name}", subtitle))
    if as_json:
        print(json.dumps(content, indent=2, ensure_ascii=False))
        return
    table = Table("figure", "value (95 % interval)", "target", "")
    for name, value, target, reached in report.figures(result):
        table.add_row(name, value, target, "reached" if reached else "not reached")
    console = Console()
    console.print(table)
    console.print(f"wrote {page}", markup=False, highlight=False, soft_wrap=True)


def _in_transformers(
    entry: ModelConfig, settings: Config, _config: Path, policy: str
) -> tuple[ChatModel, Answers]:
    from guard.models.chat import TransformersChat
    from guard.plans.language import LanguagePlans

    chat = TransformersChat.configured(entry)
    plans = LanguagePlans(settings, chat.model, name=entry.name)
    plan = plans[policy]
    plan.require_whole()
    return chat, partial(chat.answer, bank=plans.bank, guards=plan.rows(), policy=plan)


def _in_vllm(
    entry: ModelConfig, _settings: Config, config: Path, policy: str
) -> tuple[ChatModel, Answers]:
    from guard.models.chat_vllm import VllmChat

    chat = VllmChat.load(entry.source, config=config)
    return chat, chat.under(policy)
