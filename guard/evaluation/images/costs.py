"""What methods cost: the time of an image, the time of a fit, the size on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from guard.config.schema import Config
from guard.evaluation.images.figures import ASKING, EvaluatedCells
from guard.evaluation.images.suite import BARE, ImageSuite


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one method. `image_s`: seconds of an image of a prompt that asks for the concept, with all
    that is beside it in its batch; None where none was generated. `fit_s` and `size` (bytes) are
    those of one concept, the mean over concepts; `fit_s` is None where a guard has no report of its
    fit beside it."""

    image_s: float | None
    fit_s: float | None
    size: float


def costs_of(config: Config, suite: ImageSuite, cells: EvaluatedCells) -> dict[str, Cost]:
    """The costs of the suite's methods, and of the bare model."""
    concepts = list(dict.fromkeys(item.cell.concept for item in cells if item.cell.concept))
    artifacts = {guard.name: guard.artifact for guard in config.guards}
    costs = {BARE: Cost(_seconds(cells, BARE), 0.0, 0.0)}
    for method in suite.methods if concepts else ():
        policies = [suite.policy(method, concept) for concept in concepts]
        guards = [config.policies[name].guards for name in policies if name in config.policies]
        files = [[artifacts[name] for name in names if name in artifacts] for names in guards]
        if files:
            costs[method] = _cost(_seconds(cells, method), files)
    return costs


def _cost(image_s: float | None, files: Sequence[Sequence[Path]]) -> Cost:
    """From the artifacts of each concept."""
    fits = [[_fit_seconds(path) for path in paths] for paths in files]
    whole = [[s for s in seconds if s is not None] for seconds in fits]
    known = all(len(each) == len(seconds) for each, seconds in zip(whole, fits, strict=True))
    return Cost(
        image_s,
        mean(map(sum, whole)) if known else None,
        mean(sum(path.stat().st_size for path in paths if path.is_file()) for paths in files),
    )


def _seconds(cells: EvaluatedCells, method: str) -> float | None:
    results = [
        item.results[method]
        for item in cells
        if item.cell.kind in ASKING and item.cell.concept and method in item.results
    ]
    count = sum(result.generated for result in results)
    return sum(result.seconds for result in results) / count if count else None


def _fit_seconds(artifact: Path) -> float | None:
    """As the report that the fit has left beside the artifact says."""
    try:
        report = json.loads(artifact.with_name(f"{artifact.stem}.report.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    seconds = report.get("took_s") if isinstance(report, Mapping) else None
    return float(seconds) if isinstance(seconds, int | float) else None
