from __future__ import annotations

import subprocess
import sys
import types
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import typer

from guard import cli
from guard.errors import GuardError
from tests.guard.commands.running import run

pytestmark = pytest.mark.usefixtures("plain_terminal")


@pytest.mark.parametrize(
    "arguments",
    [["nope"], ["check"], ["check", "a", "b"], ["check", "--nope"], ["models", "nope"], []],
)
def test_wrong_usage_is_status_2(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


def test_a_mistyped_command_is_corrected() -> None:
    assert "Did you mean 'check'?" in run("chek").stderr


@pytest.mark.parametrize(
    "command",
    [
        "artifacts add",
        "artifacts list",
        "check",
        "inspect",
        "models add",
        "models list",
        "models show",
    ],
)
def test_every_help_ends_with_an_example(command: str) -> None:
    result = run(*command.split(), "--help")
    assert result.exit_code == 0
    assert f"Example: guard {command}" in result.stdout.rstrip().splitlines()[-1]


def with_command(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    point = EntryPoint(name, value, cli.GROUP)
    monkeypatch.setattr(cli, "entry_points", lambda group: [point] if group == cli.GROUP else [])


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    placeholder = types.ModuleType("placeholder_command")
    placeholder.app = typer.Typer()  # type: ignore[attr-defined]

    @placeholder.app.command()  # type: ignore[untyped-decorator]
    def fail() -> None:
        raise error

    monkeypatch.setitem(sys.modules, "placeholder_command", placeholder)
    with_command(monkeypatch, "extra", "placeholder_command:app")


def test_commands_of_other_packages_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, GuardError("two\nlines \x1b[31m"))
    assert "extra" in run("--help").stdout
    result = run("extra")
    assert result.exit_code == 1
    assert result.stderr == "error: two lines ?[31m\n"


@pytest.mark.parametrize("error", [RuntimeError("oops"), OSError(5, "io"), RecursionError("deep")])
def test_an_unexpected_error_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    failing(monkeypatch, error)
    result = run("extra")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {type(error).__name__}: ")
    assert "GUARD_DEBUG" in result.stderr


def test_a_command_whose_extra_is_missing_breaks_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_command(monkeypatch, "serve", "no_such_package.cli:app")
    listing = run("--help")
    assert listing.exit_code == 0
    assert "not available: needs no_such_package" in listing.stdout
    result = run("serve", "--port", "1", "x")
    assert result.exit_code == 1
    assert "needs no_such_package" in result.stderr


def test_the_version_is_printed() -> None:
    assert run("--version").stdout.startswith("inference-guard ")


def test_the_command_line_loads_no_engine(good: Path) -> None:
    program = """
import sys
from guard.cli import app
try:
    app(["check", sys.argv[1]])
except SystemExit as end:
    assert end.code == 0, end.code
# torch tries whether the tensors of a guard of a model fit together, as a server does
heavy = {"transformers", "diffusers", "fastapi", "server"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", program, str(good)], check=True, timeout=60)


def test_a_package_that_is_missing_during_a_command_is_named(
    monkeypatch: pytest.MonkeyPatch, good: Path
) -> None:
    def load(path: Path) -> None:
        raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")

    monkeypatch.setattr("guard.commands.configuration.check.load_config", load)
    result = run("check", good)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: this command needs matplotlib: install the extra")
