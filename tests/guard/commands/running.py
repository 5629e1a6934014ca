"""Running `guard` as it is typed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from guard import cli


def run(*arguments: str | Path) -> Any:
    """The outcome of `guard` with these arguments; no error may escape as a traceback."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert isinstance(result.exception, SystemExit | None), result.exception
    assert "Traceback" not in result.output
    return result
