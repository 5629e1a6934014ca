"""Write docs/cli.md from the program's own help; `--check` says whether it is stale."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

# the help is as wide as this file wants it, whatever terminal runs it
os.environ |= {"COLUMNS": "96", "TERMINAL_WIDTH": "96", "NO_COLOR": "1", "TERM": "dumb"}

import typer
from typer.testing import CliRunner

from guard.cli import app

TARGET = Path(__file__).with_name("cli.md")
HEAD = "# Command line\n\nWritten by `make docs` from the program's own help.\n"


def text() -> str:
    """The whole page."""
    return HEAD + "".join(_section(path) for path in _commands((), typer.main.get_command(app)))


def _commands(path: tuple[str, ...], command: Any) -> list[tuple[str, ...]]:
    found = [path]
    for name in sorted(getattr(command, "commands", {})):
        found += _commands((*path, name), command.commands[name])
    return found


def _section(path: tuple[str, ...]) -> str:
    result = CliRunner().invoke(app, [*path, "--help"], prog_name="guard")
    shown = "\n".join(line.rstrip() for line in result.output.strip().splitlines())
    return f"\n## guard {' '.join(path)}".rstrip() + f"\n\n```\n{shown}\n```\n"


def main() -> None:
    """Write the page, or exit with 1 where `--check` finds it stale."""
    fresh = text()
    if "--check" not in sys.argv:
        TARGET.write_text(fresh, encoding="utf-8")
    elif not TARGET.exists() or TARGET.read_text(encoding="utf-8") != fresh:
        sys.exit("docs/cli.md is stale: run `make docs`")


if __name__ == "__main__":
    main()
