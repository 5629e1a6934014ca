"""The command goes on after a failed part, within its time, and always writes its report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.gpu import __main__ as command
from tests.gpu.parts import PARTS
from tests.gpu.report import FAILED, Figure, Part, Report
from tests.gpu.settings import Settings

SETTINGS = Settings("cpu", True, 1, None, "emoji", "guards", "minilm", "work")
GOOD = Part.of([Figure("f", 1.0, "x", 1.0)], 1.0, 60.0)


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The limits of the parts that were run; `screens` fails."""
    given: dict[str, float] = {}

    def run_part(name: str, settings: Settings, limit: float) -> Part:
        given[name] = limit
        return Part(FAILED, "exit code 1", 1.0, limit) if name == "screens" else GOOD

    monkeypatch.setattr(command, "run_part", run_part)
    return given


def _asked(tmp_path: Path, *more: str) -> list[str]:
    return ["--smoke", "--device", "cpu", "--report", str(tmp_path / "gpu.json"), *more]


def _parts(tmp_path: Path) -> dict[str, dict[str, object]]:
    parts: dict[str, dict[str, object]] = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    return parts


def test_all_parts_run_though_one_fails(tmp_path: Path, limits: dict[str, float]) -> None:
    assert command.main(_asked(tmp_path)) == 1
    assert list(limits) == list(PARTS)
    assert {name for name, part in _parts(tmp_path).items() if part["status"] == FAILED} == {
        "screens"
    }


def test_some_parts_run_and_the_others_stay(tmp_path: Path, limits: dict[str, float]) -> None:
    assert command.main(_asked(tmp_path, "--only", "images,transformers")) == 0
    assert command.main(_asked(tmp_path, "--only", "screens")) == 1
    assert set(_parts(tmp_path)) == {"images", "transformers", "screens"}
    limits.clear()
    # what has run to its end is not run again, what has failed is
    command.main(_asked(tmp_path, "--resume", "--only", "images,screens"))
    assert set(limits) == {"screens"}


def test_a_new_run_without_only_begins_a_new_report(
    tmp_path: Path, limits: dict[str, float]
) -> None:
    (tmp_path / "gpu.json").write_text("another kind of file")
    command.main(_asked(tmp_path))
    assert set(_parts(tmp_path)) == {*PARTS}


def test_parts_get_what_is_left_of_the_time(
    tmp_path: Path, limits: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([0.0, 0.0, 100.0, 165.0])
    monkeypatch.setattr(command.time, "monotonic", lambda: next(times))
    report = Report("now", {}, {})
    names = ["runner-v1", "images", "screens"]
    path = tmp_path / "gpu.json"
    command.run(names, replace(SETTINGS, smoke=False), report, path, 170.0)
    assert limits == {"runner-v1": 100.0, "images": 60.0}
    assert report.parts["screens"]["status"] == "out of time"
    assert "--resume" in report.parts["screens"]["why"]


def test_the_parts_fit_into_the_time_of_a_run() -> None:
    assert sum(part.limit for part in PARTS.values()) <= command.SECONDS < 12 * 60


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["--only", "none"], "no part none: choose from"),
        (["--workers", "0"], "must be positive"),
        (["--seconds", "-1"], "must be positive"),
    ],
)
def test_wrong_arguments_are_named(
    tmp_path: Path, arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(_asked(tmp_path, *arguments))
    assert ended.value.code == 2
    assert named in capsys.readouterr().err


def test_a_cpu_is_not_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["--device", "cpu", "--report", str(tmp_path / "gpu.json")])
    assert ended.value.code == 2
    assert "there is no GPU here" in capsys.readouterr().err


def test_a_report_of_another_kind_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gpu.json").write_text("[]")
    with pytest.raises(SystemExit) as ended:
        command.main(_asked(tmp_path, "--resume"))
    assert ended.value.code == 2 and "move it away" in capsys.readouterr().err
