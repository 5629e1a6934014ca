"""A concept forgotten: from its name to fitted guards, their evaluation, and files of both."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from guard.errors import DataError
from guard.fitting.erasure.belonging import Belonging, what_belongs
from guard.fitting.erasure.erase import RATES, Erasure, fit_erasure
from guard.fitting.erasure.evaluation import Evaluation, evaluate
from guard.fitting.erasure.profile import Profile
from guard.fitting.erasure.profiling import profile_of
from guard.fitting.erasure.report import COMMAND, Parameters, as_json, as_page
from guard.fitting.files import save_names, save_policy, write_report
from guard.fitting.steering.artifacts import file_name, to_artifacts
from guard.fitting.steering.gate_search import GateRates
from guard.models.chat import ChatModel
from guard.reporting.progress import Stages

DRAFT_TERMS = 4
"""Things that belong to a concept and have a gate in a draft."""


@dataclass(frozen=True)
class Forgotten:
    """The guards of a concept, and what they caught and missed."""

    erasure: Erasure
    evaluation: Evaluation
    took_s: float


@dataclass(frozen=True)
class Files:
    """What was written: an artifact for each gate, the policy that lists them, a list of patterns
    with the concept's names in all languages, the report and its page."""

    artifacts: tuple[Path, ...]
    policy: Path
    names: Path
    page: Path
    report: dict[str, Any]


def forget(
    chat: ChatModel,
    name: str,
    aliases: Sequence[str],
    documents: Sequence[str],
    progress: Stages,
    *,
    rates: GateRates = RATES,
    draft: bool = False,
    facts: Sequence[str] = (),
    instead: str = "",
    collected: Callable[[Belonging], None] = lambda belonging: None,
) -> Forgotten:
    """Fit guards of a concept from its name; `collected` is called with what belongs to it. A
    `draft` has gates for the first few things that belong to it, and is tried on fewer prompts.
    `facts` and `instead` are those of `Belonging`.

    Raises DataError where the model knows nothing of it, and as `profile_of` and `fit_erasure` do.
    """
    profile = profile_of(chat, progress)
    started = time.monotonic()
    belonging = what_belongs(chat, name, aliases, documents, progress)
    if not belonging.known and not belonging.terms:
        raise DataError(
            f"{chat.name} seems to know nothing of {name!r}: its answers agree on no name, so "
            "there is nothing to forget; give documents about it if it does know, or stop "
            "the words themselves with a screen of patterns"
        )
    belonging = replace(belonging, facts=tuple(facts), instead=instead)
    if draft:
        belonging = replace(belonging, terms=belonging.terms[:DRAFT_TERMS])
    collected(belonging)
    return fitted(chat, profile, belonging, progress, rates=rates, started=started, draft=draft)


def fitted(
    chat: ChatModel,
    profile: Profile,
    belonging: Belonging,
    progress: Stages,
    *,
    rates: GateRates,
    started: float,
    draft: bool = False,
) -> Forgotten:
    """Fit guards of a concept of which it is known what belongs to it; `started` is on the
    monotonic clock."""
    erasure = fit_erasure(chat, profile, belonging, progress, rates=rates)
    evaluation = evaluate(chat, erasure, progress, draft=draft)
    return Forgotten(erasure, evaluation, time.monotonic() - started)


def save(
    chat: ChatModel, forgotten: Forgotten, out: Path, parameters: Parameters = COMMAND
) -> Files:
    """Write the artifacts of a concept beside `out`, which names none itself, their policy and
    report; its judgement names `parameters`."""
    erasure, evaluation = forgotten.erasure, forgotten.evaluation
    paths = []
    concept = f"concept/{file_name(erasure.belonging.name)}"
    for subject, artifact in to_artifacts(erasure.fit, chat, concept=concept).items():
        path = out.with_name(f"{out.stem}-{subject}.safetensors")
        artifact.save(path)
        paths.append(path)
    report = as_json(erasure, evaluation, forgotten.took_s, parameters)
    page = write_report(out, report, as_page(erasure, evaluation, parameters))
    policy = save_policy(paths, out, instead=erasure.belonging.instead)
    names = save_names(erasure.belonging.listed, out)
    return Files(tuple(paths), policy, names, page, report)
