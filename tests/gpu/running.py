"""Parts in processes of their own, each under a limit of time.

A part that fails, or that takes its GPU with it, leaves the others alone; one that is late is
ended with all of its processes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.gpu.report import FAILED, LATE, SKIPPED, Figure, Part
from tests.gpu.settings import Settings

ENDED, WHY = "ended", "skipped"
"""Last lines of a part's file: it has run to its end, or cannot run here."""
_GRACE_S = 5.0
_TOLD = 1500
"""Characters of a failed part's output that the report keeps."""


def run_part(
    name: str, settings: Settings, limit: float, command: tuple[str, ...] | None = None
) -> Part:
    """Run a part for at most `limit` seconds.

    `command` is what is run with the paths of the settings and of the figures behind; None is the
    part `name` of this package.
    """
    folder = settings.folder(name)
    asked, figures, log = (folder / file for file in ("settings.json", "figures.jsonl", "log"))
    settings.save(asked)
    figures.write_text("")
    command = command or (sys.executable, "-m", "tests.gpu.part", name)
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, str(asked), str(figures)],
            stdout=output,
            stderr=subprocess.STDOUT,
            # its own group, to be ended as a whole
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    seconds = time.monotonic() - began
    found, last = _read(figures)
    if code is None:
        why = f"ended after {limit:.0f} s; {_tail(log)}"
        return Part(LATE, why, seconds, limit, found)
    if WHY in last:
        return Part(SKIPPED, str(last[WHY]), seconds, limit, found)
    if code or ENDED not in last:
        return Part(FAILED, f"exit code {code}; {_tail(log)}", seconds, limit, found)
    return Part.of(found, seconds, limit)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what is left of the part's group."""
    for number, patience in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, _GRACE_S)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        until = time.monotonic() + patience
        while time.monotonic() < until and _alive(process):
            time.sleep(0.05)
    process.wait(_GRACE_S)


def _alive(process: subprocess.Popen[bytes]) -> bool:
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def _read(path: Path) -> tuple[list[Figure], dict[str, object]]:
    """The figures, and the last line where it is none; a line that was cut off is left out."""
    found: list[Figure] = []
    last: dict[str, object] = {}
    for line in path.read_text("utf-8").splitlines():
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if "name" in content:
            found.append(Figure(**content))
        else:
            last = content
    return found, last


def _tail(log: Path) -> str:
    text = log.read_bytes()[-4 * _TOLD :].decode("utf-8", "replace")
    return " | ".join(line.strip() for line in text.splitlines() if line.strip())[-_TOLD:]
