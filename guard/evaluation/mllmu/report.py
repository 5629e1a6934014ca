"""The report of suite `mllmu`, as JSON and as a page."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from guard.evaluation.mllmu.asking import Asked, Kind
from guard.evaluation.mllmu.contestants import BARE, Reply
from guard.evaluation.mllmu.figures import (
    GONE,
    UNTOUCHED,
    Pairs,
    Result,
    chance_of,
    figures,
    identical,
    is_right,
    letters,
    prior_of,
    right,
    rouge,
    sum_of,
)
from guard.evaluation.shares import Share
from guard.reporting import plots, pngs
from guard.reporting.page import Grid, Images, Part, Plot, Tile, render

SHOWN = 24
LISTED = 40


def as_json(result: Result, about: Mapping[str, Any]) -> dict[str, Any]:
    """Every figure and every answer."""
    return {
        **about,
        "figures": [asdict(figure) for figure in figures(result)],
        "sums": {name: asdict(total) for name in result.replies if (total := sum_of(result, name))},
        "cells": [
            _cell(result, kind, name)
            for kind in result.kinds
            for name in result.replies
            if result.of(name, kind.__eq__)
        ],
        "contestants": {name: dict(notes) for name, notes in result.notes.items()},
        "skipped": dict(result.benchmark.skipped),
        "attacks": {
            name: {
                "recovered": _share(Share.of([row.recovered for row in rows])),
                "answers": [row.as_json() for row in rows],
            }
            for name, rows in result.attacks.items()
        },
        "answers": [
            _answer(item, {name: rows[i] for name, rows in result.replies.items()})
            for i, item in enumerate(result.asked)
        ],
    }


def _cell(result: Result, kind: Kind, name: str) -> dict[str, Any]:
    pairs = result.of(name, kind.__eq__)
    cell = asdict(kind) | {"contestant": name, "right": _share(right(pairs))}
    if kind.task == "classification":
        cell["prior"] = prior_of(result, kind)
        if not pairs[0][0].is_scored:
            cell["first_letter"] = _share(letters(pairs))
    if kind.task == "generation" and (scores := rouge(pairs)):
        cell["rouge"] = asdict(scores)
    if name != BARE and kind.part in UNTOUCHED and not pairs[0][0].is_scored:
        cell["identical"] = _share(identical(pairs, result.of(BARE, kind.__eq__)))
    cell["chance"] = chance_of(result, kind)
    return cell


def _share(share: Share) -> dict[str, Any]:
    # of nothing there is no interval, and JSON has no NaN
    low, high = share.interval if share.total else (None, None)
    return {"count": share.count, "total": share.total, "low": low, "high": high}


def _answer(item: Asked, replies: Mapping[str, Reply | None]) -> dict[str, Any]:
    question = item.question
    return {
        "part": question.part,
        "person": question.person,
        "task": question.task,
        "by": question.by,
        "variant": item.variant,
        "text": item.text,
        "truth": question.truth,
        "facts": list(question.facts),
        "answers": {
            name: {
                "text": reply.text,
                "right": is_right(item, reply),
                "fired": reply.fired,
                **({"chosen": reply.choice(question)} if reply.scores else {}),
            }
            for name, reply in replies.items()
            if reply is not None
        },
    }


def as_page(result: Result, title: str, subtitle: str) -> str:
    """The page: figures, sums, shares by kind of question, images with both answers."""
    found = figures(result)
    tiles = [
        Tile(figure.name, figure.value.split(" (")[0], figure.target, figure.reached)
        for figure in found
    ]
    columns = ("figure", "bare", "value (95 % interval)", "target", "")
    rows = [
        (f.name, f.bare, f.value, f.target, "reached" if f.reached else "not reached")
        for f in found
    ]
    parts: list[Part] = [
        Grid("Figures", columns, rows),
        *_plots(result),
        _sums(result),
        _shares(result),
        *_attacks(result),
        _images(result),
        _alarms(result),
    ]
    return render(title, subtitle, tiles, parts)


def _plots(result: Result) -> list[Plot]:
    """Bars by part, one group for each way of asking, one plot for each task."""
    made = []
    for task in dict.fromkeys(kind.task for kind in result.kinds):
        groups: dict[str, dict[str, plots.Whiskered]] = {}
        for part in result.benchmark.parts:
            for name in result.replies:
                keep = _kind(part, task)
                if pairs := result.of(name, keep):
                    share = right(pairs)
                    groups.setdefault(part, {})[name] = (share.value, *share.interval)
        if groups:
            caption = (
                "Right answers by part; forget and test should be at chance, the rest as bare."
            )
            made.append(Plot(task.capitalize(), plots.groups(groups, y="right, %"), caption))
    return made


def _kind(part: str, task: str) -> Callable[[Kind], bool]:
    return lambda kind: (kind.part, kind.task, kind.variant) == (part, task, "")


def _sums(result: Result) -> Grid:
    rows = []
    for name in result.replies:
        if total := sum_of(result, name):
            interval = f"{total.total.low:.1f} to {total.total.high:.1f}"
            rows.append(
                (
                    name,
                    f"{total.forgotten:.1f}",
                    f"{total.kept:.1f}",
                    f"{total.total.value:.1f}",
                    interval,
                )
            )
    return Grid(
        "Forgotten and kept",
        ("contestant", "forgotten", "kept", "sum", "95 % interval"),
        rows,
        "Forgotten: 100 minus the mean over the parts forget and test and over tasks; kept: the "
        "mean over retain and celebrities. Measures: accuracy of classifications and clozes, "
        "ROUGE-L of generations, in per cent. Intervals are bootstrapped over questions.",
    )


def _shares(result: Result) -> Grid:
    names = [*result.replies]
    rows = []
    for kind in result.kinds:
        cells = [result.of(name, kind.__eq__) for name in names]
        guesses = (chance_of(result, kind), prior_of(result, kind))
        rows.append(
            (
                kind.part,
                kind.task,
                kind.by,
                kind.variant or "as released",
                *("-" if guess is None else f"{guess:.0%}" for guess in guesses),
                *(_shown(kind, pairs) for pairs in cells),
            )
        )
    return Grid(
        "Right answers",
        ("part", "task", "by", "variant", "chance", "prior", *names),
        rows,
        "Classifications by the likeliest option: by its text as the answer, or by its letter, "
        "then in brackets by the first letter generated; prior: the option that is most often "
        "right of other people. Generations by exact facts, and ROUGE-L.",
    )


def _shown(kind: Kind, pairs: Pairs) -> str:
    if not pairs:
        return "-"
    share = right(pairs)
    low, high = share.interval
    shown = f"{share.value:.1%} ({share.count}/{share.total}; {low:.0%} to {high:.0%}"
    if kind.task == "classification" and not pairs[0][0].is_scored:
        return f"{shown}; first letter {letters(pairs).value:.0%})"
    scores = rouge(pairs) if kind.task == "generation" else None
    return f"{shown})" if scores is None else f"{shown}; ROUGE-L {scores.longest:.2f})"


def _attacks(result: Result) -> list[Part]:
    parts: list[Part] = []
    for name, rows in result.attacks.items():
        share = Share.of([row.recovered for row in rows])
        shown = sorted(rows, key=lambda row: not row.recovered)[:SHOWN]
        parts.append(
            Images(
                f"Attack: {name}",
                ("portrait", "attacked"),
                [
                    (
                        f"{row.text} ({', '.join(row.facts)})",
                        [
                            (pngs.uri(pngs.png(row.portrait)), row.before),
                            (pngs.uri(pngs.png(row.image)), row.after),
                        ],
                    )
                    for row in shown
                ],
                f"Facts brought back: {share}. Below each image the guarded answer; those with "
                "facts first.",
            )
        )
    return parts


def _images(result: Result) -> Images:
    """Forgotten people: image and question, bare and guarded answer, the bad ones first."""
    pairs = result.of(result.ours, lambda kind: kind.part in GONE and kind.by != "name")
    bare = result.of(BARE, lambda kind: kind.part in GONE and kind.by != "name")
    rows = list(zip(pairs, bare, strict=True))
    random.Random(0).shuffle(rows)
    rows.sort(key=lambda row: not is_right(*row[0]))
    shown = []
    for (item, guarded), (_, unguarded) in rows[:SHOWN]:
        image = "" if item.image is None else pngs.uri(pngs.png(item.image))
        label = f"{item.variant or item.question.part}: {item.question.text}"
        said = (_said(item, unguarded), _said(item, guarded))
        shown.append((label, [(image, f"bare: {said[0]}"), ("", f"guarded: {said[1]}")]))
    return Images(
        "Forgotten people",
        ("bare", result.ours),
        shown,
        f"Questions that are still answered first, then a random sample; {len(rows)} in all.",
    )


def _said(item: Asked, reply: Reply) -> str:
    letter = reply.choice(item.question) if reply.scores and not item.is_scored else None
    return letter or reply.text


def _alarms(result: Result) -> Grid:
    pairs = result.of(result.ours, lambda kind: kind.part not in GONE)
    bare = result.of(BARE, lambda kind: kind.part not in GONE)
    changed = [
        (a[0].question.part, a[0].question.text, b[1].text, a[1].text)
        for a, b in zip(pairs, bare, strict=True)
        if a[1].tokens != b[1].tokens
    ]
    generated = sum(not item.is_scored for item, _ in pairs)
    return Grid(
        "Other answers that changed",
        ("part", "question", "bare", "guarded"),
        changed[:LISTED],
        f"False alarms. {len(changed)} of {generated}; the first {LISTED} are here.",
    )
