"""Ablations of IRECE: curves over all concepts, from the trials that the artifacts carry."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from guard.reporting import plots
from guard.reporting.page import Plot
from guard.reporting.plots import Whiskered

Trials = Sequence[Mapping[str, Any]]
Lines = dict[str, dict[int, list[float]]]

_NOTE = "Mean over the concepts, with the smallest and largest value; held-out images of the fits."


def ablations(calibrations: Sequence[Mapping[str, Any]]) -> Iterator[Plot]:
    """One plot for each setting that `guard fit irece` chooses; none without calibrations."""
    mask = "masked over, % of the way from the median to the peak"
    writing = "inspections that may write"
    choices: Sequence[tuple[str, str, str, Callable[[Mapping[str, Any]], Lines]]] = (
        ("first inspection", "first inspection", "recall at the requested rates, %", _windows),
        ("heads beside the votes", "heads", "%", _heads),
        ("size of the mask", mask, "%", _masks),
        ("replacement", writing, "concept gone, %", partial(_breaking, figure="gone")),
        (
            "change outside of the mask",
            writing,
            "change outside, % of the variance",
            partial(_breaking, figure="change_outside"),
        ),
    )
    for title, x, y, lines_of in choices:
        lines: Lines = {}
        for calibration in calibrations:
            for name, points in lines_of(calibration).items():
                line = lines.setdefault(name, defaultdict(list))
                for step, values in points.items():
                    line[step] += values
        if lines:
            spread = {
                name: {step: _spread(values) for step, values in points.items()}
                for name, points in lines.items()
            }
            yield Plot(f"Ablation: {title}", plots.efforts(spread, x=x, y=y), _NOTE)


def _spread(values: Sequence[float]) -> Whiskered:
    return sum(values) / len(values), min(values), max(values)


def _windows(calibration: Mapping[str, Any]) -> Lines:
    trials: Trials = calibration.get("windows", ())
    return {"recall": {t["first_look"]: [t["recall"]] for t in trials}} if trials else {}


def _heads(calibration: Mapping[str, Any]) -> Lines:
    # the last trials are those of masks, which use all chosen heads
    trials: Trials = calibration.get("places", ())
    same = [
        t for t in trials if t["votes"] == trials[-1]["votes"] and t["mask"] == trials[0]["mask"]
    ]
    return _gone(same, lambda trial: len(trial["reads"]))


def _masks(calibration: Mapping[str, Any]) -> Lines:
    trials: Trials = calibration.get("places", ())
    same = [
        trial
        for trial in trials
        if trial["reads"] == trials[-1]["reads"] and trial["votes"] == trials[-1]["votes"]
    ]
    return _gone(same, lambda trial: round(100 * trial["mask"]))


def _gone(trials: Trials, x: Callable[[Mapping[str, Any]], int]) -> Lines:
    if not trials:
        return {}
    return {
        "concept gone": {x(trial): [trial["gone"]] for trial in trials},
        "share of the image": {x(trial): [trial["area"]] for trial in trials},
    }


def _breaking(calibration: Mapping[str, Any], figure: str) -> Lines:
    lines: Lines = {}
    for trial in calibration.get("breaking", ()):
        lines.setdefault(trial["replacement"], {})[trial["looks"]] = [trial[figure]]
    return lines
