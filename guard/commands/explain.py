"""`guard explain`: what the figures of a report mean, in plain words, and what to do next."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from guard.errors import DataError

app = typer.Typer(add_completion=False)

MAX_BYTES = 2**28
SHOWN = 5
"""Missed prompts, and wrongly hit ones, that are printed."""

_TEXT = re.compile(r"\btext(?=s?\b)")
_SHARE = re.compile(r"^(-?[\d.]+)%")
_TABLE: Mapping[str, Mapping[str, Any]] = tomllib.loads(
    (Path(__file__).parent / "explanations.toml").read_text("utf-8")
)

Verdict = Literal["good", "bad", "neither"]


@dataclass(frozen=True)
class Explained:
    """A figure in words: whether it is good, and what to do where it is not."""

    text: str
    verdict: Verdict
    do: str = ""


@dataclass(frozen=True)
class _Kind:
    """A kind of report: what it is of, which keys tell it, and what to do where a target is
    missed."""

    what: str
    keys: frozenset[str]
    missed: str = ""


_KINDS = (
    _Kind("guards made from a name (`guard new`)", frozenset({"judgement", "figures", "tried"})),
    _Kind(
        "an evaluation of unlearning (`guard eval unlearn`)",
        frozenset({"policy", "figures", "rewordings"}),
        "read the answers in the page, the bad ones come first; add prompts of the failing kind to "
        "the train split and fit again (docs/fitting.md, When it is not)",
    ),
    _Kind(
        "an evaluation of erasure under attack (`guard eval m-erasure`)",
        frozenset({"suite", "figures", "drops"}),
        "put a guard of latents behind the one of prompts: `guard fit irece`",
    ),
    _Kind(
        "an evaluation of images (`guard eval images`)",
        frozenset({"suite", "figures", "attacks"}),
        "look at the images in the page; add phrases for what is reproduced and hard negatives for "
        "what is changed, or put `guard fit latents` behind",
    ),
    _Kind(
        "an evaluation of forgotten people (`guard eval mllmu`)",
        frozenset({"policy", "figures", "sums"}),
        "add forget prompts of the failing way of asking (by portrait, by name, by both)",
    ),
    _Kind("a fit (`guard fit`)", frozenset({"concept", "calibration", "settings"})),
)


@app.command(epilog="Example: guard explain guards/frankenstein.report.json")
def explain(
    report: Annotated[
        Path, typer.Argument(help="The JSON of a fit or an evaluation, or the artifact beside it.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Say in plain English what the figures of a report mean, what is good, what is bad, and what
    to do next."""
    content = read_report(report)
    kind = _kind_of(content, report)
    found = list(explained(content))
    steps = list(dict.fromkeys(each.do for each in found if each.verdict == "bad" and each.do))
    if kind.missed and any(each.verdict == "bad" for each in found):
        steps.append(kind.missed)
    if as_json:
        told = {
            "report": kind.what,
            "judgement": content.get("judgement"),
            **{
                verdict: [each.text for each in found if each.verdict == verdict]
                for verdict in ("good", "bad", "neither")
            },
            "next": steps or [_then(content)],
        }
        typer.echo(json.dumps(told, indent=2))
        return
    subject = content.get("concept") or content.get("policy") or content.get("suite")
    _say(f"{report} is about {subject!r}: the report of {kind.what}.")
    if line := content.get("judgement"):
        _say(f"Judgement: {line}")
    for title, verdict in (("Good", "good"), ("Bad", "bad"), ("To know", "neither")):
        _list(title, [each.text for each in found if each.verdict == verdict])
    for key, title in (("missed", "Missed, among others"), ("hit", "Wrongly hit, among others")):
        _list(title, [_prompt(row, content) for row in content.get(key, [])[:SHOWN]])
    _list("What to do next", steps or [_then(content)])


def read_report(path: Path) -> dict[str, Any]:
    """A report; of an artifact the one beside it. Raises DataError naming the file."""
    if path.suffix in {".safetensors", ".toml"}:
        path = path.with_name(f"{path.stem}.report.json")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: is larger than {MAX_BYTES // 2**20} MiB: no report")
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is no JSON: {error}") from error
    if isinstance(content, list) and len(content) == 1:
        (content,) = content
    if not isinstance(content, dict):
        raise DataError(f"{path}: is no report of a fit or an evaluation")
    return content


def explained(content: Mapping[str, Any]) -> Iterator[Explained]:
    """The figures of a report, in words."""
    figures = content.get("figures")
    if isinstance(figures, list):
        yield from (_of_target(figure) for figure in figures if isinstance(figure, Mapping))
    of_fit = dict(_figures(content))
    for name, entry in _TABLE.items():
        if (value := of_fit.get(name)) is not None:
            words = _of_table(entry, value, of_fit)
            yield _about_images(words) if content.get("method") == "image-screen" else words


def _about_images(words: Explained) -> Explained:
    """What is said of a screen of texts, said of one of images."""
    hidden = " although they are hidden (letters, codes, spellings)"
    text = words.text.replace(hidden, " although they are altered")
    return Explained(_TEXT.sub("image", text), words.verdict, _TEXT.sub("image", words.do))


def _of_target(figure: Mapping[str, Any]) -> Explained:
    """A figure of an evaluation, which has its target beside it."""
    name = str(figure.get("figure") or figure.get("name"))
    target, reached = figure.get("target"), figure.get("reached")
    aim = f" (target: {target})" if target else ""
    verdict: Verdict = "neither" if reached is None else "good" if reached else "bad"
    return Explained(f"{name}: {figure.get('value')}{aim}", verdict)


def _of_table(entry: Mapping[str, Any], value: float, others: Mapping[str, float]) -> Explained:
    shown = f"{value:.2f}" if entry.get("plain") else f"{value:.1%}"
    text = f"{shown} {entry['means']}"
    bound = entry.get("good")
    limit = others.get(bound) if isinstance(bound, str) else bound
    if limit is None:
        return Explained(text, "neither")
    low = entry["better"] == "low"
    said = f"{limit:g}" if entry.get("plain") else f"{100 * limit:g}%"
    text += f" (good: {'at most' if low else 'at least'} {said})"
    is_good = value <= limit if low else value >= limit
    return Explained(text, "good" if is_good else "bad", entry.get("do", ""))


def _figures(content: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The figures of a fit by name, shares from 0 to 1; those of held-out texts begin "tested."."""
    calibration = content.get("calibration")
    calibration = calibration if isinstance(calibration, Mapping) else {}
    tested = calibration.get("tested")
    tested = tested if isinstance(tested, Mapping) else {}
    figures = content.get("figures")
    parts = [
        ("", calibration),
        ("tested.", tested),
        ("", figures if isinstance(figures, Mapping) else {}),
    ]
    for prefix, part in parts:
        for name, value in part.items():
            if (number := _number(value)) is not None:
                yield f"{prefix}{name}", number
    bare, guarded = (_number(calibration.get(f"{x}_perplexity")) for x in ("bare", "guarded"))
    if bare and guarded:
        yield "perplexity_ratio", guarded / bare


def _number(value: object) -> float | None:
    """A figure as a number: a float, the share of "97.2% (389/400)", or that of all parts."""
    if isinstance(value, Mapping):
        whole = value.get("all")
        value = whole.get("value") if isinstance(whole, Mapping) else None
    if isinstance(value, str) and (match := _SHARE.match(value)):
        return float(match[1]) / 100
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None  # type: ignore[arg-type]


def _kind_of(content: Mapping[str, Any], path: Path) -> _Kind:
    for kind in _KINDS:
        if kind.keys <= content.keys():
            return kind
    raise DataError(
        f"{path}: is no report of a fit or an evaluation: give the NAME.report.json beside an "
        "artifact, or what `guard eval` has written"
    )


def _then(content: Mapping[str, Any]) -> str:
    """What comes next where nothing is bad."""
    if "policy" in content or "suite" in content:
        return "every target is reached: serve it (docs/deployment.md)"
    return (
        "put it into a policy with `guard add`, under the action `observe` at first, and measure "
        "it with `guard eval` on prompts that no fit has read"
    )


def _prompt(row: object, content: Mapping[str, Any]) -> str:
    if not isinstance(row, Mapping):
        return str(row)  # as reports of earlier releases have it
    score, threshold = (
        f"{number:.3f}" if (number := _number(value)) is not None else "unknown"
        for value in (row.get("score"), row.get("threshold", content.get("threshold")))
    )
    return f"{row.get('prompt')!r} (score {score}, threshold {threshold})"


def _list(title: str, lines: list[str]) -> None:
    if lines:
        _say(f"\n{title}:")
        for line in lines:
            _say(f"- {line}")


def _say(text: str) -> None:
    # reports may come from elsewhere: no control characters in the terminal
    typer.echo("".join(c if c.isprintable() or c == "\n" else "?" for c in text))
