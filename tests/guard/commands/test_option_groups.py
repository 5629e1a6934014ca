"""Options of several commands, told once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from guard.commands.option_groups import grouped


@dataclass(frozen=True, kw_only=True)
class Place:
    folder: Annotated[Path, typer.Option(help="Where.")]
    depth: Annotated[int, typer.Option(min=1)] = 3


@dataclass(frozen=True, kw_only=True)
class DeepPlace(Place):
    deep: Annotated[bool, typer.Option("--deep")] = False


def walk(place: DeepPlace, word: str = "a", *, loud: bool = False) -> None:
    """Walk."""
    print(place, word, loud)


def invoke(*arguments: str) -> tuple[int, str, str]:
    app = typer.Typer()
    app.command()(grouped(walk))
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.stdout.strip(), result.stderr


def test_a_command_gets_the_group_as_one_object() -> None:
    given = invoke("--folder", "x", "--depth", "5", "--deep", "--word", "b", "--loud")
    assert given == (0, f"{DeepPlace(folder=Path('x'), depth=5, deep=True)} b True", "")
    assert invoke("--folder", "x")[1] == f"{DeepPlace(folder=Path('x'))} a False"


def test_fields_are_checked_as_options_are() -> None:
    code, _, told = invoke("--folder", "x", "--depth", "0")
    assert code == 2 and "--depth" in told and "than or equal to 1" in told
    code, _, told = invoke()
    assert code == 2 and "Missing option '--folder'" in told


def test_the_help_has_the_required_options_first_and_the_other_fields_last() -> None:
    code, told, _ = invoke("--help")
    places = [told.index(name) for name in ("--folder", "--word", "--loud", "--depth", "--deep")]
    assert code == 0 and places == sorted(places) and "Walk." in told


def test_a_name_in_two_places_is_an_error() -> None:
    def twice(place: Place, depth: int = 1) -> None: ...

    with pytest.raises(ValueError, match="depth"):
        grouped(twice)
