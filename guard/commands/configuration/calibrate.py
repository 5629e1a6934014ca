"""`guard calibrate`: the thresholds of a policy's guards, for the rate of all of them together."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from guard.commands.documents import read_document, replace_document
from guard.commands.eval.options import (
    AsJson,
    ConfigFile,
    MeasuredModel,
    configured_model,
    measured_policy,
)
from guard.config.schema import load_config
from guard.data.bank.bank import topics
from guard.data.prompts import RetainPrompt, in_split, read_rows
from guard.errors import DataError, UnknownModel
from guard.reporting.progress import stages

if TYPE_CHECKING:
    from guard.plans.language import LanguagePlan
    from steering.hidden.rows import RowGuard

app = typer.Typer(add_completion=False)

DIGITS = 5
"""Of thresholds that are written."""


@app.command(epilog="Example: guard calibrate books -c config.toml --fpr 0.01")
def calibrate(
    policy: Annotated[str, typer.Argument(help="The policy whose guards are calibrated.")],
    config: ConfigFile = Path("config.toml"),
    model: MeasuredModel = None,
    fpr: Annotated[
        float,
        typer.Option(
            min=0.0001, max=0.5, help="Share of innocent requests on which any guard may fire."
        ),
    ] = 0.01,
    retain: Annotated[
        Path | None,
        typer.Option(
            help="Innocent requests of your own (JSON Lines, `prompt`, and `split` test for those "
            "that judge); the prompts of the retain bank if left out."
        ),
    ] = None,
    tokens: Annotated[
        int, typer.Option(min=1, max=2000, help="Tokens of the answers that are checked.")
    ] = 48,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say the thresholds, and write nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Raise the thresholds of a policy's guards until all together keep a rate of false positives.

    Each guard was fitted with a rate of its own; a policy of many fires on more. Innocent requests
    of the validation split calibrate, those of the test split judge. Thresholds are written into
    the configuration, where they hold for the guards in every policy.
    """
    settings = load_config(config)
    chosen = measured_policy(settings, policy)
    entry = configured_model(settings, model, config)
    if entry.kind != "language":
        raise UnknownModel(f"model {entry.name!r} makes images: give --model, a language model")
    known, judging = _innocent(retain)

    from guard.fitting.policy_rate import calibrated, fired, read_scores, require_prompts
    from guard.models.chat import TransformersChat
    from guard.plans.language import LanguagePlans

    require_prompts(fpr, len(known))
    chat = TransformersChat.configured(entry)
    plans = LanguagePlans(settings, chat.model, name=entry.name)
    plan = plans[chosen]
    plan.require_whole()
    plan.require_fit(entry.name)
    if not plan.guards:
        raise DataError(
            f"policy {chosen!r} has no guard inside a language model: screens of text have "
            "rates of their own, see `guard fit screen`"
        )
    spoken = _spoken(plan)
    known, judging = ([p for p in each if not spoken(p)] for each in (known, judging))
    require_prompts(fpr, len(known))
    if not judging:
        raise DataError("each prompt of the test split says the concept of a guard: add others")
    # guards in shadow act on nothing, so that nothing fires because of them
    acting = {guard.name for guard in plan.guards if not guard.shadow}
    before = [row for row in plan.rows() if row.name in acting]
    if not before:
        raise DataError(f"all guards of policy {chosen!r} are in shadow: none of them acts")
    with stages() as progress:
        of_known, of_judging = (
            read_scores(chat, plans.bank, before, each, answer_tokens=tokens, progress=progress)
            for each in (known, judging)
        )
    after = calibrated(before, of_known, fpr)
    report: dict[str, Any] = {
        "policy": chosen,
        "model": entry.name,
        "rate": fpr,
        "guards": [
            {"guard": old.name}
            | {"threshold": [old.threshold, _rounded(new.threshold)]}
            | {"recheck": [old.recheck, _rounded(new.recheck)]}
            for old, new in zip(before, after, strict=True)
        ],
        "fired_validation": [str(fired(guards, of_known)) for guards in (before, after)],
        "fired_test": [str(fired(guards, of_judging)) for guards in (before, after)],
        "written": not dry_run,
    }
    if not dry_run:
        _write(config, before, after)
    if as_json:
        print(json.dumps(report, indent=2))
        return
    _print(report, config)


def _innocent(retain: Path | None) -> tuple[list[str], list[str]]:
    """The prompts that calibrate and those that judge."""
    if retain is None:
        by_split = {
            split: [p for topic in topics() if topic.split == split for p in topic.prompts]
            for split in ("validation", "test")
        }
        return by_split["validation"], by_split["test"]
    rows = read_rows(retain, RetainPrompt)
    judging = [row.prompt for row in in_split(rows, "test")]
    if not judging:
        raise DataError(
            f'{retain}: no prompt is of the test split: mark some with "split": "test", which '
            "judge what the others calibrate"
        )
    return [row.prompt for row in rows if row.split != "test"], judging


def _spoken(plan: LanguagePlan) -> Callable[[str], object]:
    """Whether a prompt says the concept of a guard, which is no false positive."""
    from guard.fitting.erasure.naming import mentions

    concepts = {guard.concept.rsplit("/", 1)[-1].replace("-", " ") for guard in plan.guards}
    return mentions(sorted(concepts)).search


def _rounded(threshold: float | None) -> float | None:
    """Rounded up: a rate that holds keeps holding."""
    return None if threshold is None else round(threshold + 0.5 * 10**-DIGITS, DIGITS)


def _write(config: Path, before: Sequence[RowGuard], after: Sequence[RowGuard]) -> None:
    """The thresholds that have changed, into the configuration."""
    changed = {new.name: new for old, new in zip(before, after, strict=True) if old != new}
    if not changed:
        return
    document: Any = read_document(config)
    for table in document["guards"]:
        if new := changed.get(str(table["name"])):
            table["threshold"] = _rounded(new.threshold)
            if new.recheck is not None:
                table["recheck"] = _rounded(new.recheck)
    replace_document(config, document)


def _print(report: dict[str, Any], config: Path) -> None:
    console = Console()
    table = Table("guard", "threshold", "of generated tokens")
    for guard in report["guards"]:
        table.add_row(guard["guard"], *map(_change, (guard["threshold"], guard["recheck"])))
    console.print(table)
    for split in ("validation", "test"):
        before, after = report[f"fired_{split}"]
        line = f"{split}: any guard fired on {before} of innocent requests, and now on {after}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    done = f"wrote {config}" if report["written"] else f"{config} is as it was"
    console.print(done, markup=False, highlight=False, soft_wrap=True)


def _change(pair: Sequence[float | None]) -> str:
    before, after = pair
    if before is None or after is None:
        return "none"
    return f"{before:.3f}" if abs(after - before) < 10**-DIGITS else f"{before:.3f} → {after:.3f}"
