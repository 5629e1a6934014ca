"""What fitting IRECE has tried, as curves over all concepts; artifacts carry their own trials."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from guard.reporting import plots
from guard.reporting.page import Plot
from guard.reporting.plots import Whiskered

Trials = Sequence[Mapping[str, Any]]
Lines = dict[str, dict[int, list[float]]]

_NOTE = "Means over the concepts, from the least to the most; held-out images of the fits."


def ablations(calibrations: Sequence[Mapping[str, Any]]) -> Iterator[Plot]:
    """One plot for each thing that `guard fit irece` chooses; none where nothing was fitted."""
    every: Sequence[tuple[str, str, str, Callable[[Mapping[str, Any]], Lines]]] = (
        ("first look", "first look", "recall at the rates asked for, %", _windows),
        ("heads beside the votes", "heads", "%", _heads),
        ("size of the mask", "masked over, % of the way from the median to the peak", "%", _masks),
        ("what is put there", "looks that may write", "concept gone, %", _replacements),
        ("what it costs", "looks that may write", "change outside, % of the variance", _changes),
    )
    for title, x, y, read in every:
        lines: Lines = {}
        for calibration in calibrations:
            for name, points in read(calibration).items():
                line = lines.setdefault(name, defaultdict(list))
                for at, values in points.items():
                    line[at] += values
        if lines:
            spread = {
                name: {at: _spread(values) for at, values in points.items()}
                for name, points in lines.items()
            }
            yield Plot(f"Ablation: {title}", plots.efforts(spread, x=x, y=y), _NOTE)


def _spread(values: Sequence[float]) -> Whiskered:
    return sum(values) / len(values), min(values), max(values)


def _windows(calibration: Mapping[str, Any]) -> Lines:
    tried: Trials = calibration.get("windows", ())
    return {"recall": {each["first_look"]: [each["recall"]] for each in tried}} if tried else {}


def _heads(calibration: Mapping[str, Any]) -> Lines:
    # behind the last trial of heads stand those of masks, which have all of them
    tried: Trials = calibration.get("places", ())
    same = [e for e in tried if e["votes"] == tried[-1]["votes"] and e["mask"] == tried[0]["mask"]]
    return _gone(same, lambda each: len(each["reads"]))


def _masks(calibration: Mapping[str, Any]) -> Lines:
    tried: Trials = calibration.get("places", ())
    same = [
        each
        for each in tried
        if each["reads"] == tried[-1]["reads"] and each["votes"] == tried[-1]["votes"]
    ]
    return _gone(same, lambda each: round(100 * each["mask"]))


def _gone(tried: Trials, place: Callable[[Mapping[str, Any]], int]) -> Lines:
    if not tried:
        return {}
    return {
        "concept gone": {place(each): [each["gone"]] for each in tried},
        "share of the image": {place(each): [each["area"]] for each in tried},
    }


def _replacements(calibration: Mapping[str, Any]) -> Lines:
    return _broken(calibration, "gone")


def _changes(calibration: Mapping[str, Any]) -> Lines:
    return _broken(calibration, "change_outside")


def _broken(calibration: Mapping[str, Any], told: str) -> Lines:
    lines: Lines = {}
    for each in calibration.get("breaking", ()):
        lines.setdefault(each["replacement"], {})[each["looks"]] = [each[told]]
    return lines
