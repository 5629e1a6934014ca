"""The report of the guards of a concept: a judgement, what they caught, what they missed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from guard.errors import DataError
from guard.evaluation.shares import Share
from guard.fitting.erasure.belonging import Belonging
from guard.fitting.erasure.erase import Erasure
from guard.fitting.erasure.evaluation import Evaluation, Tried
from guard.fitting.judgement import DRAFT
from guard.fitting.steering.gate_search import GateRates
from guard.reporting import plots
from guard.reporting.page import Grid, Part, Plot, Tile, render
from guard.reporting.values import rows

MAX_BYTES = 2**26
CAUGHT, SPARED = 0.9, 0.99
"""Shares of prompts by name that fire, and of far prompts that do not, of a guard that is ready."""


@dataclass(frozen=True)
class Parameters:
    """What a caller may give for better guards, by the names that it has where the caller asks;
    empty for what cannot be given there."""

    aliases: str
    documents: str
    fpr: str = ""
    near_fpr: str = ""


COMMAND = Parameters("--alias", "--about", "--fpr", "--near-fpr")
PYTHON = Parameters("`aliases`", "`documents`", "`fpr`", "`near_fpr`")
HTTP = Parameters("'aliases'", "'documents'")


def judgement(erasure: Erasure, evaluation: Evaluation, parameters: Parameters = COMMAND) -> str:
    """Whether the guards can be used as they are, and what to do where they cannot: one line."""
    line = _judged(erasure, evaluation, parameters)
    if named := [each for each in _innocent(evaluation) if each.listed]:
        line += f"; its list of names finds one in {named[0].prompt!r}: take it out there"
    return f"{line}; {DRAFT}" if evaluation.draft else line


def _judged(erasure: Erasure, evaluation: Evaluation, parameters: Parameters) -> str:
    name, far = evaluation.fired("name"), evaluation.fired("far")
    missed = [each for each in (*evaluation.of("name"), *evaluation.of("term")) if not each.fired]
    if far.value > 1 - SPARED:
        hit = next(each for each in evaluation.of("far") if each.fired)
        return (
            f"not usable: fires on {far} of innocent prompts, as on {hit.prompt!r}; name a "
            "narrower concept" + (parameters.fpr and f", or ask for a lower {parameters.fpr}")
        )
    if name.value < CAUGHT:
        return (
            f"a draft: fires on {name} of prompts that name it; missed {missed[0].prompt!r}; give "
            f"its other names with {parameters.aliases}, documents with {parameters.documents}"
            + (parameters.near_fpr and f", or ask for a higher {parameters.near_fpr}")
        )
    lost = f"; missed {missed[0].prompt!r}" if missed else ""
    if not erasure.belonging.terms:
        return (
            f"usable where it is named{lost}; give documents with {parameters.documents} to know "
            "what belongs to it"
        )
    return f"usable{lost}"


def as_json(
    erasure: Erasure, evaluation: Evaluation, took_s: float, parameters: Parameters = COMMAND
) -> dict[str, Any]:
    """All figures, and every prompt that was tried."""
    fit, belonging = erasure.fit, erasure.belonging
    assert fit.subjects is not None
    return {
        "concept": belonging.name,
        "belonging": asdict(belonging),
        "judgement": judgement(erasure, evaluation, parameters),
        "near_topics": [topic.name for topic in erasure.near],
        "left_out_topics": [topic.name for topic in erasure.left_out],
        "calibration": fit.calibration,
        "figures": _figures(evaluation),
        "subjects": list(fit.subjects.names),
        "missed": _listed(
            each for each in evaluation.of("name") + evaluation.of("term") if not each.fired
        ),
        "hit": _listed(each for each in _innocent(evaluation) if each.fired),
        "tried": [asdict(each) for each in evaluation.tried],
        "took_s": round(took_s, 1),
    }


def belonging_of(path: Path) -> tuple[Belonging, GateRates]:
    """What a report says was fitted, and the rates. Raises DataError for a file that is none."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: is larger than {MAX_BYTES // 2**20} MiB")
        report = json.loads(path.read_text("utf-8"))
        belonging = TypeAdapter(Belonging).validate_python(report["belonging"])
        calibration = report["calibration"]
        rates = GateRates(
            float(calibration["false_positive_rate"]),
            float(calibration["near_false_positive_rate"]),
        )
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: is no report of `guard new`: {reason}") from error
    return belonging, rates


def as_page(erasure: Erasure, evaluation: Evaluation, parameters: Parameters = COMMAND) -> str:
    """The same as a page."""
    fit, belonging = erasure.fit, erasure.belonging
    scores = {"far": fit.gate.far, "near": fit.gate.near, "forget": fit.gate.forget}
    thresholds = {"prompt threshold": fit.gate.threshold}
    if fit.recheck is not None:
        thresholds["answer threshold"] = fit.recheck
    tiles = [
        Tile("Prompts by name that fire", _counted(evaluation.fired("name"))),
        Tile("Prompts about what belongs to it", _counted(evaluation.fired("term"))),
        Tile("Near topics that fire", _counted(evaluation.fired("near"))),
        Tile("Far topics that fire", _counted(evaluation.fired("far"))),
        Tile("Answers that leak", _counted(evaluation.leaks)),
    ]
    forget = (*evaluation.of("name"), *evaluation.of("term"))
    hit = [each for each in _innocent(evaluation) if each.fired]
    named = [each for each in _innocent(evaluation) if each.listed]
    parts: list[Part] = [
        Grid("Judgement", ("",), [(judgement(erasure, evaluation, parameters),)]),
        Grid(
            "Gates",
            ("gate of",),
            [(name,) for name in (fit.subjects.names if fit.subjects else ())],
            "The concept, and what belongs to it by its documents and by the model itself.",
        ),
        Plot(
            "Gate scores",
            plots.histograms(scores, thresholds),
            "The largest score of all gates, on the validation split.",
        ),
        _answers("Prompts about it that do not fire", [each for each in forget if not each.fired]),
        Grid(
            "Innocent prompts that fire",
            ("topic", "prompt", "score", "threshold"),
            [(e.about, e.prompt, *_scores(e)) for e in hit],
        ),
        Grid(
            "Innocent prompts in which the list of names finds one",
            ("topic", "prompt"),
            [(e.about, e.prompt) for e in named],
            f"The list has {', '.join(erasure.belonging.listed)}, with typing errors, too.",
        ),
        _answers("Answers that leak", [each for each in forget if each.leaked]),
        _answers("Prompts about it that fire", [each for each in forget if each.fired]),
        Grid("Calibration", ("figure", "value"), rows(fit.calibration)),
    ]
    near = ", ".join(topic.name for topic in erasure.near)
    return render(f"Guards of {belonging.name}", f"Near topics: {near}", tiles, parts)


def _figures(evaluation: Evaluation) -> dict[str, str]:
    complaints = {
        f"fired_{way}": str(evaluation.fired(way))
        for way in ("leak", "innocent")
        if evaluation.of(way)
    }
    return complaints | {
        "fired_by_name": str(evaluation.fired("name")),
        "fired_by_term": str(evaluation.fired("term")),
        "fired_near": str(evaluation.fired("near")),
        "fired_far": str(evaluation.fired("far")),
        "listed_by_name": str(evaluation.listed("name")),
        "listed_near": str(evaluation.listed("near")),
        "listed_far": str(evaluation.listed("far")),
        "leaks": str(evaluation.leaks),
        "loops": str(evaluation.loops),
    }


def _innocent(evaluation: Evaluation) -> list[Tried]:
    return [*evaluation.of("near"), *evaluation.of("far")]


def _counted(share: Share) -> str:
    return f"{share.count} of {share.total}"


def _answers(title: str, tried: Sequence[Tried]) -> Grid:
    return Grid(
        title,
        ("about", "prompt", "score", "threshold", "bare answer", "guarded answer"),
        [(each.about, each.prompt, *_scores(each), each.bare, each.guarded) for each in tried],
    )


def _scores(each: Tried) -> tuple[str, str]:
    """Score and threshold as they are printed."""
    score, threshold = each.score, each.threshold
    return "" if score is None else f"{score:.4f}", "" if threshold is None else f"{threshold:.4f}"


def _listed(tried: Iterable[Tried]) -> list[dict[str, Any]]:
    return [
        {"prompt": e.prompt, "kind": e.way, "score": e.score, "threshold": e.threshold}
        for e in tried
    ]
