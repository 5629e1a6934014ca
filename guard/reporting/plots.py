"""Plots as SVG data URIs, drawn without a display."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# the same plot gives the same bytes
matplotlib.rcParams["svg.hashsalt"] = "inference-guard"

COLOURS = {"forget": "#c0392b", "near": "#d68910", "far": "#2471a3"}


def histograms(scores: Mapping[str, Sequence[float]], lines: Mapping[str, float]) -> str:
    """Overlaid histograms, one per key, with vertical `lines` (thresholds)."""
    figure, axes = _figure()
    all_values = np.concatenate([np.asarray(values) for values in scores.values()])
    low, high = np.percentile(all_values, [0.1, 99.9])
    bins = np.linspace(low, high, 60)
    for name, values in scores.items():
        clipped = np.clip(values, low, high)
        colour = COLOURS.get(name)
        axes.hist(clipped, bins=list(bins), alpha=0.55, label=name, density=True, color=colour)
    for style, (name, at) in zip(("-", "--", ":"), lines.items(), strict=False):
        axes.axvline(at, color="#222", linestyle=style, label=f"{name} {at:.3f}")
    axes.set_xlabel("gate score")
    axes.set_ylabel("density")
    axes.legend(frameon=False)
    return _uri(figure)


def curves(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    points: Mapping[str, tuple[float, float]],
    *,
    x: str,
    y: str,
) -> str:
    """One line per key, each with its chosen point; both axes are in percent."""
    figure, axes = _figure()
    for i, (name, (across, up)) in enumerate(lines.items()):
        colour = f"C{i}"
        axes.step(np.asarray(across) * 100, np.asarray(up) * 100, label=name, color=colour)
        if name in points:
            at = points[name]
            axes.plot(at[0] * 100, at[1] * 100, "o", color=colour)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_ylim(-2, 102)
    axes.legend(frameon=False)
    return _uri(figure)


def receiver(
    unsafe: Sequence[float], benign: Sequence[float], points: Mapping[str, tuple[float, float]]
) -> str:
    """The receiver operating characteristic of scores, with marked `points` of it (x, y)."""
    cuts = np.unique(np.concatenate([unsafe, benign]))[::-1]
    across = [float((np.asarray(benign) >= cut).mean()) for cut in cuts]
    up = [float((np.asarray(unsafe) >= cut).mean()) for cut in cuts]
    figure, axes = _figure()
    axes.step([0, *(100 * np.array(across))], [0, *(100 * np.array(up))], where="post")
    for mark, (label, at) in zip("osD", points.items(), strict=False):
        axes.plot(at[0] * 100, at[1] * 100, mark, label=label)
    # low rates matter most: linear up to one per cent, logarithmic beyond
    axes.set(xscale="symlog", xlim=(0, 102), ylim=(-2, 102))
    axes.set(xlabel="benign texts that fire, %", ylabel="unsafe texts that fire, %")
    axes.legend(frameon=False)
    return _uri(figure)


def bars(values: Mapping[str, float], *, limit: float | None, x: str) -> str:
    """Horizontal bars in percent, with a dashed `limit`."""
    figure, axes = _figure(height=0.9 + 0.32 * len(values))
    names = list(values)[::-1]
    shares = [values[name] * 100 for name in names]
    axes.barh(names, shares, color="#2471a3")
    for i, share in enumerate(shares):
        axes.text(share + 0.6, i, f"{share:.1f}", va="center", fontsize=9)
    if limit is not None:
        axes.axvline(limit * 100, color="#222", linestyle="--", label=f"target {limit:.0%}")
        axes.legend(frameon=False)
    axes.set_xlim(0, max(105.0 if max(shares, default=0) > 60 else 40.0, 1.0))
    axes.set_xlabel(x)
    return _uri(figure)


Whiskered = tuple[float, float, float]
"""A share with the ends of its interval: value, low, high."""


def groups(values: Mapping[str, Mapping[str, Whiskered]], *, y: str) -> str:
    """Vertical bars in percent with whiskers, one group per key, one colour per inner key."""
    figure, axes = _figure()
    names = list(values)
    series = list(dict.fromkeys(name for group in values.values() for name in group))
    width = 0.8 / max(len(series), 1)
    for i, name in enumerate(series):
        present = [
            (x, values[group][name]) for x, group in enumerate(names) if name in values[group]
        ]
        positions = [x + (i - (len(series) - 1) / 2) * width for x, _ in present]
        heights = np.array([value for _, value in present]).T * 100
        # the interval of a share of 0 or 1 may exclude it by a rounding error
        whiskers = np.abs(heights[1:] - heights[0])
        axes.bar(positions, heights[0], width * 0.92, yerr=whiskers, label=name, ecolor="#555")
    axes.set_xticks(range(len(names)), names)
    axes.set_ylim(0, 102)
    axes.set_ylabel(y)
    # the legend is above the bars, which may be as high as the axis
    axes.legend(frameon=False, ncols=min(len(series), 6), loc="lower left", bbox_to_anchor=(0, 1))
    return _uri(figure)


def efforts(
    lines: Mapping[str, Mapping[int, Whiskered]], *, x: str, y: str, limits: Sequence[float] = ()
) -> str:
    """One line per key over an effort, in percent, each with the band of its interval."""
    figure, axes = _figure()
    for name, points in lines.items():
        effort = sorted(points)
        value, low, high = np.array([points[x_value] for x_value in effort]).T * 100
        (line,) = axes.plot(effort, value, "o-", label=name)
        axes.fill_between(effort, low, high, alpha=0.15, color=line.get_color())
    for limit in limits:
        axes.axhline(limit * 100, color="#222", linestyle="--", linewidth=0.8)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_ylim(-2, 102)
    axes.legend(frameon=False)
    return _uri(figure)


def _figure(height: float = 3.6) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8.2, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
