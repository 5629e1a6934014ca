"""The report of a run on a GPU: one JSON file, whole after every part.

    {
      "schema": 1,
      "started": "2026-11-30T10:00:00+00:00",     of the latest run that added to it
      "machine": {"gpu": "NVIDIA H200", "torch": "2.13.0", ...},
      "settings": {"device": "cuda", "smoke": false, ...},
      "parts": {
        "runner-v1": {
          "status": "passed",                      or missed, failed, out of time, skipped
          "why": null,                             of a part that failed or was skipped
          "seconds": 61.2, "limit": 110.0,
          "figures": [
            {"name": "PIECEWISE: guarded requests that differ", "value": 0, "unit": "requests",
             "target": 0, "sense": "at most", "passed": true, "seconds": 21.4, "note": ""}
          ]
        }
      }
    }

A part has *passed* where all of its figures with a target reach it, and has *missed* where one does
not. `seconds` of a figure is the time since the part's last figure, 0 where they came together. A
figure without a target has "target": null and "passed": null. Values that are not finite are
written as null, and miss any target.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SCHEMA = 1
PASSED, MISSED, FAILED, LATE, SKIPPED = "passed", "missed", "failed", "out of time", "skipped"
DONE = frozenset({PASSED, MISSED})
SENSES = ("at least", "at most")


class Unreadable(ValueError):
    """A file that is no report."""


@dataclass(frozen=True)
class Figure:
    """A measured value; `sense` says on which side of the `target` it should lie."""

    name: str
    value: float
    unit: str
    target: float | None = None
    sense: str = "at least"
    note: str = ""
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.sense not in SENSES:
            raise ValueError(f"the sense of {self.name!r} is neither of {', '.join(SENSES)}")

    @property
    def passed(self) -> bool | None:
        """Whether it reaches its target; None without one."""
        if self.target is None:
            return None
        if not math.isfinite(self.value):
            return False
        at_least = self.sense == "at least"
        return self.value >= self.target if at_least else self.value <= self.target

    def as_dict(self) -> dict[str, Any]:
        value = self.value if math.isfinite(self.value) else None
        return asdict(self) | {"value": value, "passed": self.passed}


@dataclass(frozen=True)
class Part:
    """What came of one part."""

    status: str
    why: str | None
    seconds: float
    limit: float
    figures: Sequence[Figure] = ()

    @classmethod
    def of(cls, figures: Sequence[Figure], seconds: float, limit: float) -> Part:
        """A part that has run to its end."""
        missed = any(figure.passed is False for figure in figures)
        return cls(MISSED if missed else PASSED, None, seconds, limit, figures)

    def as_dict(self) -> dict[str, Any]:
        figures = [figure.as_dict() for figure in self.figures]
        return {
            "status": self.status,
            "why": self.why,
            "seconds": round(self.seconds, 2),
            "limit": self.limit,
            "figures": figures,
        }


@dataclass
class Report:
    """All parts so far, by name."""

    started: str
    machine: Mapping[str, Any]
    settings: Mapping[str, Any]
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether no part has failed, missed a target or run out of time."""
        return all(part["status"] in (PASSED, SKIPPED) for part in self.parts.values())

    def done(self, name: str) -> bool:
        """Whether a part has run to its end."""
        return name in self.parts and self.parts[name]["status"] in DONE

    def write(self, path: Path) -> None:
        """Write the file by one rename, so that an interrupted run leaves the last whole one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}-{os.getpid()}")
        text = json.dumps({"schema": SCHEMA} | asdict(self), indent=1, allow_nan=False)
        temporary.write_text(text + "\n", "utf-8")
        temporary.replace(path)


def read_parts(path: Path) -> dict[str, dict[str, Any]]:
    """The parts of an earlier run, none where there is no file. Raises Unreadable."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise Unreadable(f"{path}: {error}: move it away") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise Unreadable(f"{path} is no report of schema {SCHEMA}: move it away")
    parts: dict[str, dict[str, Any]] = content["parts"]
    return parts


def lines(name: str, part: Mapping[str, Any]) -> list[str]:
    """One part for people: a line for it, and one for each figure."""
    why = f": {part['why']}" if part["why"] else ""
    found = [f"{name}: {part['status']}{why} ({part['seconds']:.0f} s)"]
    for figure in part["figures"]:
        mark = {True: "ok  ", False: "MISS", None: "    "}[figure["passed"]]
        value = "none" if figure["value"] is None else f"{figure['value']:.4g}"
        target = ""
        if figure["target"] is not None:
            target = f" ({figure['sense']} {figure['target']:g})"
        note = f" [{figure['note']}]" if figure["note"] else ""
        found.append(f"  {mark} {figure['name']}: {value} {figure['unit']}{target}{note}")
    return found
