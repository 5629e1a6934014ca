"""Running `guard` as it is typed."""

from __future__ import annotations

import json
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


class InFolder:
    """`guard` with the configuration of a folder."""

    def __init__(self, folder: Path, config: str) -> None:
        self.folder, self.config = folder, folder / "config.toml"
        self.config.write_text(config)

    def __call__(self, *arguments: str, status: int = 0) -> Any:
        """The outcome, which must have this exit status."""
        result = run(*arguments, "--config", self.config)
        assert result.exit_code == status, result.output
        return result

    def json(self, *arguments: str) -> Any:
        """What it prints as JSON."""
        return json.loads(self(*arguments, "--json").stdout)
