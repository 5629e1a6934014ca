"""The command `guard`: finds its subcommands, and turns every error into a line and a status.

A subcommand is a `typer.Typer`, named by an entry point of the group `guard.commands`, and is
imported when it is called. Exit status: 0 success, 1 a check or an operation failed, 2 wrong usage.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, MutableMapping
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import guard
from guard.errors import ConfigError, GuardError

GROUP = "guard.commands"

_EXTRAS = (
    "install the extra that has it: inference-guard[serve], [proxy], [tenants], [fit] or [demo]"
)

BUILT_IN = {
    "add": "guard.commands.configuration.adding:app",
    "artifacts": "guard.commands.artifact.artifacts:app",
    "audit": "guard.commands.audit:app",
    "calibrate": "guard.commands.configuration.calibrate:app",
    "certificate": "guard.commands.artifact.certificate:app",
    "check": "guard.commands.configuration.check:app",
    "demo": "guard.commands.demo.command:app",
    "doctor": "guard.commands.doctor.command:app",
    "eval": "guard.commands.eval.command:app",
    "explain": "guard.commands.explain:app",
    "fit": "guard.commands.fit.command:app",
    "gate": "guard.commands.artifact.gate:app",
    "harden": "guard.commands.artifact.harden:app",
    "import": "guard.commands.importing.command:app",
    "inspect": "guard.commands.artifact.inspect:app",
    "keys": "guard.commands.tenants.keys:app",
    "models": "guard.commands.models:app",
    "new": "guard.commands.erase.new:app",
    "organisations": "guard.commands.tenants.organisations:app",
    "policy": "guard.commands.policy:app",
    "profile": "guard.commands.erase.profile:app",
    "rebind": "guard.commands.artifact.rebind:app",
    "refine": "guard.commands.erase.refine:app",
    "suppress": "guard.commands.erase.suppress:app",
    "teams": "guard.commands.tenants.teams:app",
    "try": "guard.commands.trying:app",
}


class Commands(MutableMapping[str, Any]):
    """The commands by name, imported at first use."""

    def __init__(self) -> None:
        self._points = {name: EntryPoint(name, value, GROUP) for name, value in BUILT_IN.items()}
        self._points |= {point.name: point for point in entry_points(group=GROUP)}
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            self._loaded[name] = _command(self._points[name])
        return self._loaded[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        del self._points[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self._points, *self._loaded}))

    def __len__(self) -> int:
        return len({*self._points, *self._loaded})

    def __contains__(self, name: object) -> bool:
        return name in self._points or name in self._loaded


class CommandGroup(TyperGroup):
    """The group behind `guard`: late imports, and no traceback unless GUARD_DEBUG is set."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = Commands()

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except GuardError as error:
            lines = error.problems if isinstance(error, ConfigError) else (error.message,)
            for line in lines:
                print_error(line)
            raise typer.Exit(1) from error
        except (typer.Exit, typer.Abort, typer.TyperException, BrokenPipeError):
            raise
        except Exception as error:
            if os.environ.get("GUARD_DEBUG"):
                raise
            if isinstance(error, ModuleNotFoundError):
                print_error(f"this command needs {error.name}: {_EXTRAS}")
                raise typer.Exit(1) from error
            print_error(f"{type(error).__name__}: {error} (set GUARD_DEBUG=1 to see where)")
            raise typer.Exit(1) from error


def print_error(message: str) -> None:
    """Print `error: message` to stderr as one line, without control characters."""
    line = " ".join(message.split())
    print("error:", "".join(c if c.isprintable() else "?" for c in line), file=sys.stderr)


def _command(point: EntryPoint) -> Any:
    try:
        loaded = point.load()
    except ImportError as error:
        loaded = _unavailable(point.name, error)
    command = typer.main.get_command(loaded)
    command.name = point.name
    return command


def _unavailable(name: str, error: ImportError) -> typer.Typer:
    # A missing extra must not break the other commands.
    placeholder = typer.Typer(add_completion=False)
    needed = error.name or str(error)

    @placeholder.command(
        help=f"(not available: needs {needed})",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
    def fail() -> None:
        raise GuardError(f"`guard {name}` needs {needed}: {_EXTRAS}")

    return placeholder


app = typer.Typer(
    cls=CommandGroup,
    name="guard",
    help="Keep a model from producing what it must not, while it runs.",
    epilog="Example: guard check config.toml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(requested: bool) -> None:
    if requested:
        print(f"inference-guard {guard.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the command `guard`."""
    # what transformers says while it is imported is not for the users of a command
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    app(prog_name="guard")
