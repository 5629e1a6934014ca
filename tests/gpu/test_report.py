"""A report is one JSON file that says what reached its target."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.gpu.report import FAILED, SKIPPED, Figure, Part, Report, Unreadable, lines, read_parts

RATIO = Figure("of bare", 0.985, "ratio", 0.97, note="quartiles 0.97 to 0.99", seconds=1.5)
SYNCS = Figure("own waits", 2.0, "a forward", 0.05, "at most")
PLAIN = Figure("throughput", 4000.0, "tokens/s")


def _report() -> Report:
    return Report("2026-11-30T10:00:00+00:00", {"gpu": "any"}, {"smoke": False})


@pytest.mark.parametrize(
    "value, target, sense, passed",
    [
        (0.97, 0.97, "at least", True),
        (0.969, 0.97, "at least", False),
        (0.0, 0.0, "at most", True),
        (0.1, 0.05, "at most", False),
        (math.nan, 0.97, "at least", False),
        (math.nan, 0.97, "at most", False),
        (math.inf, 0.97, "at least", False),
        (5.0, None, "at least", None),
    ],
)
def test_a_figure_reaches_its_target_or_not(
    value: float, target: float | None, sense: str, passed: bool | None
) -> None:
    assert Figure("f", value, "x", target, sense).passed is passed


def test_a_figure_has_one_of_two_senses() -> None:
    with pytest.raises(ValueError, match="neither of at least, at most"):
        Figure("f", 1.0, "x", 1.0, "about")


def test_a_part_has_passed_where_all_targets_are_reached() -> None:
    assert Part.of([RATIO, PLAIN], 3.0, 60.0).status == "passed"
    assert Part.of([RATIO, SYNCS], 3.0, 60.0).status == "missed"
    # nothing that could be missed
    assert Part.of([], 3.0, 60.0).status == "passed"


def test_what_is_written_is_read_and_is_plain_json(tmp_path: Path) -> None:
    report, path = _report(), tmp_path / "build" / "gpu.json"
    report.parts["a"] = Part.of([RATIO, Figure("n", math.nan, "x", 1.0)], 3.21, 60.0).as_dict()
    report.write(path)
    written = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert written["schema"] == 1 and written["machine"] == {"gpu": "any"}
    ratio, nan = written["parts"]["a"]["figures"]
    assert ratio == {
        "name": "of bare",
        "value": 0.985,
        "unit": "ratio",
        "target": 0.97,
        "sense": "at least",
        "note": "quartiles 0.97 to 0.99",
        "seconds": 1.5,
        "passed": True,
    }
    assert nan["value"] is None and nan["passed"] is False
    assert read_parts(path) == report.parts
    assert [each.name for each in path.parent.iterdir()] == ["gpu.json"]


def test_a_run_holds_unless_a_part_does_not() -> None:
    report = _report()
    report.parts["a"] = Part.of([RATIO], 1.0, 60.0).as_dict()
    report.parts["b"] = Part(SKIPPED, "not installed: vllm", 1.0, 60.0).as_dict()
    assert report.holds and report.done("a")
    # what was skipped may go elsewhere, what failed another time
    assert not report.done("b") and not report.done("c")
    report.parts["c"] = Part(FAILED, "exit code 1", 1.0, 60.0).as_dict()
    assert not report.holds and not report.done("c")
    report.parts["c"] = Part.of([SYNCS], 1.0, 60.0).as_dict()
    assert not report.holds and report.done("c")


def test_a_file_of_another_kind_is_not_overwritten(tmp_path: Path) -> None:
    assert read_parts(tmp_path / "none.json") == {}
    for content in ("{", "[]", '{"schema": 2, "parts": {}}'):
        (tmp_path / "other.json").write_text(content)
        with pytest.raises(Unreadable, match="move it away"):
            read_parts(tmp_path / "other.json")


def test_people_read_a_line_for_each_figure() -> None:
    part = Part.of([RATIO, SYNCS, PLAIN], 61.0, 120.0).as_dict()
    assert lines("throughput", part) == [
        "throughput: missed (61 s)",
        "  ok   of bare: 0.985 ratio (at least 0.97) [quartiles 0.97 to 0.99]",
        "  MISS own waits: 2 a forward (at most 0.05)",
        "       throughput: 4000 tokens/s",
    ]
    failed = Part(FAILED, "exit code 1; no memory", 2.0, 60.0).as_dict()
    assert lines("images", failed) == ["images: failed: exit code 1; no memory (2 s)"]
