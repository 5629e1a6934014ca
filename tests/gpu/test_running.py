"""Parts run in processes of their own, which fail, stop and end late for themselves."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from tests.gpu.report import FAILED, LATE, PASSED, SKIPPED
from tests.gpu.running import run_part
from tests.gpu.settings import Settings, Skipped, require_packages, required_model

FIGURE = '{"name": "f", "value": 1.0, "unit": "x", "target": 1.0}'


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings("cpu", True, 1, None, "emoji", "guards", "minilm", str(tmp_path))


def _command(code: str) -> tuple[str, ...]:
    """A part that runs `code`, with `out` the file of its figures."""
    return (sys.executable, "-c", f"import sys; out = open(sys.argv[2], 'a')\n{code}")


def test_a_part_that_ends_has_its_figures(settings: Settings) -> None:
    code = f"print('{FIGURE}', file=out); print('{{\"ended\": true}}', file=out)"
    part = run_part("p", settings, 60.0, _command(code))
    assert part.status == PASSED and part.why is None
    (figure,) = part.figures
    assert (figure.name, figure.value, figure.passed) == ("f", 1.0, True)
    assert 0 < part.seconds < 60 and part.limit == 60.0


def test_a_part_that_fails_keeps_its_figures_and_says_why(settings: Settings) -> None:
    code = f"print('{FIGURE}', file=out, flush=True); raise SystemExit('out of memory')"
    part = run_part("p", settings, 60.0, _command(code))
    assert part.status == FAILED and part.why == "exit code 1; out of memory"
    assert len(part.figures) == 1


def test_a_part_that_vanishes_without_an_end_has_failed(settings: Settings) -> None:
    part = run_part("p", settings, 60.0, _command(f"print('{FIGURE}', file=out)"))
    assert part.status == FAILED and part.why is not None and part.why.startswith("exit code 0")


def test_a_part_may_say_that_it_cannot_run_here(settings: Settings) -> None:
    part = run_part("p", settings, 60.0, _command('print(\'{"skipped": "no GPU"}\', file=out)'))
    assert part.status == SKIPPED and part.why == "no GPU"


def test_a_late_part_is_ended_with_its_children(settings: Settings, tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    child = (
        "import signal, time\\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\\n"
        f"while True: open('{alive}', 'a').write('.'); time.sleep(0.05)"
    )
    code = (
        f"print('{FIGURE}', file=out, flush=True)\n"
        "import subprocess, time\n"
        f'subprocess.Popen([sys.executable, "-c", "{child}"])\n'
        "print('working', flush=True)\n"
        f"print('{FIGURE[:20]}', file=out, flush=True)\n"
        "time.sleep(600)"
    )
    part = run_part("p", settings, 4.0, _command(code))
    assert part.status == LATE and part.why == "ended after 4 s; working"
    # the line that was cut off is left out
    assert len(part.figures) == 1 and part.seconds < 30
    assert alive.exists()
    before = alive.stat().st_size
    time.sleep(0.5)
    assert alive.stat().st_size == before


def test_a_part_runs_again_from_nothing(settings: Settings) -> None:
    ends = f"print('{FIGURE}', file=out); print('{{\"ended\": true}}', file=out)"
    for _ in range(2):
        assert len(run_part("p", settings, 60.0, _command(ends)).figures) == 1


def test_what_is_missing_skips_a_part(tmp_path: Path) -> None:
    require_packages("json", "pytest")
    with pytest.raises(Skipped, match="not installed: no_such_package"):
        require_packages("json", "no_such_package")
    with pytest.raises(Skipped, match="or give --images FOLDER"):
        required_model("no-such-model", "--images")
    # a name of a hub is no folder, and nothing is asked for it
    with pytest.raises(Skipped, match="owner/model is no folder: give --language FOLDER"):
        required_model("owner/model", "--language")
    (tmp_path / "config.json").write_text("{}")
    assert required_model(str(tmp_path), "--language") == str(tmp_path)
