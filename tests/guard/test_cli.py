from __future__ import annotations

import json
import subprocess
import sys
import types
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from guard import cli
from guard.errors import GuardError
from guard.models import sources
from tests.guard.config.test_schema import BAD, GOOD
from tests.guard.conftest import MakeArtifact


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("GUARD_DEBUG", raising=False)


def run(*arguments: str | Path) -> Any:
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert isinstance(result.exception, SystemExit | None), result.exception
    assert "Traceback" not in result.output
    return result


@pytest.fixture
def good(tmp_path: Path, make_artifact: MakeArtifact) -> Path:
    make_artifact().save(tmp_path / "hp.safetensors")
    (tmp_path / "config.toml").write_text(GOOD, "utf-8")
    return tmp_path / "config.toml"


def test_check_prints_what_a_configuration_means(good: Path) -> None:
    result = run("check", good)
    assert result.exit_code == 0, result.output
    for words in (
        "Policy strict: steer, on error open, for acme (sha256:aaaaaaaa)",
        "Policy none: no guards, for acme",
        "character/harry-potter",
        "0.7 (config)",
        "1 (artifact)",
        "False (artifact)",
        "tiny (ffffffffffff)",
        "holds.",
    ):
        assert words in result.stdout, words


def test_check_prints_the_same_as_json(good: Path) -> None:
    result = run("check", good, "--json")
    meaning = json.loads(result.stdout)
    assert meaning["ok"] is True
    (guard,) = meaning["policies"]["strict"]["guards"]
    assert guard["threshold"] == {"value": 0.7, "from": "config"}
    assert guard["strength"] == {"value": 1.0, "from": "artifact"}
    assert guard["fits_model"]["fingerprint"] == "f" * 64
    assert meaning["policies"]["none"]["asked_for_by"] == ["acme (sha256:aaaaaaaa)"]
    assert meaning["keys"][0]["policies"] == ["none", "strict"]
    assert "a" * 64 not in result.stdout


IMAGES = """
[server]
default_policy = "hp"

[[models]]
name = "words"
source = "./words"

[[models]]
name = "emoji"
source = "./emoji"
engine = "diffusers"
steps = 25

[[guards]]
name = "hp"
artifact = "hp.safetensors"

[[guards]]
name = "knife"
artifact = "knife.safetensors"

[policies.hp]
guards = ["hp"]

[policies.knife]
guards = ["hp", "knife"]
action = "refine"
fallback = "replace"
replacement = "a banana"
"""


@pytest.fixture
def images(tmp_path: Path, make_artifact: MakeArtifact) -> Path:
    make_artifact().save(tmp_path / "hp.safetensors")
    settings = {"threshold": 0.5, "strength": 1.0, "max_steps": 12, "rate": 0.123456}
    make_artifact(seams=["embedding"], method="toy", settings=settings).save(
        tmp_path / "knife.safetensors"
    )
    (tmp_path / "config.toml").write_text(IMAGES, "utf-8")
    return tmp_path / "config.toml"


def test_check_shows_image_models_fallbacks_and_settings_of_methods(images: Path) -> None:
    output = " ".join(run("check", images).stdout.split())
    for words in (
        'Policy knife: refine, on error closed, for anyone, fallback replace by "a banana"',
        "max_steps 12, rate 0.1235",
        "steps: 25",
        "hp (server): has no guard",
    ):
        assert words in output, words
    assert "fallback" not in output.partition("Policy hp:")[2].partition("Policy knife")[0]


def test_check_shows_which_policies_are_for_which_model(images: Path) -> None:
    meaning = json.loads(run("check", images, "--json").stdout)
    words, emoji = meaning["models"]
    assert (words["policies"], emoji["policies"]) == (["none", "hp", "knife"], ["none", "knife"])
    assert words["default_policy"] == {"value": "hp", "from": "server", "fits": True}
    assert emoji["default_policy"] == {"value": "hp", "from": "server", "fits": False}
    assert meaning["policies"]["knife"]["fallback"] == "replace"
    assert [guard["kind"] for guard in meaning["policies"]["knife"]["guards"]] == [
        "language",
        "images",
    ]
    assert meaning["guards"][1]["settings"] == {"max_steps": 12, "rate": 0.123456}


@pytest.mark.parametrize("may", [True, False])
def test_check_shows_which_keys_allow_embeddings(good: Path, may: bool) -> None:
    good.write_text(GOOD + f"embeddings = {str(may).lower()}\n", "utf-8")
    meaning = json.loads(run("check", good, "--json").stdout)
    assert meaning["keys"][0]["embeddings"] is may
    keys = run("check", good).stdout.partition("Keys")[2]
    assert "own" in keys and ("yes" in keys) is may


def test_check_shows_a_policy_that_no_key_may_use(good: Path) -> None:
    good.write_text(GOOD.replace('policies = ["none"]', ""), "utf-8")
    assert "Policy none: no guards, for no key" in run("check", good).stdout


def test_check_without_keys_shows_anyone(tmp_path: Path) -> None:
    (tmp_path / "config.toml").touch()
    assert "Policy none: no guards, for anyone" in run("check", tmp_path / "config.toml").stdout


def test_check_prints_one_line_for_each_problem_and_fails(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(BAD, "utf-8")
    result = run("check", path)
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert len(lines) == 18
    assert all(line.startswith("error: line ") for line in lines)
    result = run("check", path, "--json")
    assert result.exit_code == 1
    assert len(json.loads(result.stdout)["problems"]) == 18


def test_inspect_prints_the_contents_of_an_artifact(
    tmp_path: Path, make_artifact: MakeArtifact
) -> None:
    path = tmp_path / "a.safetensors"
    settings = {"threshold": 0.5, "note": "\x1b[31m [bold]not markup"}
    made = make_artifact(settings=settings)
    made.save(path)
    result = run("inspect", path)
    assert result.exit_code == 0, result.output
    for words in (made.digest, "2 x 8", "settings.threshold", "[bold]not markup", "hidden"):
        assert words in result.stdout
    assert "\x1b" not in result.stdout
    contents = json.loads(run("inspect", path, "--json").stdout)
    assert contents["tensors"][0] == {
        "name": "direction",
        "shape": [8],
        "norm": pytest.approx(140**0.5),
        "max": 7.0,
    }


def test_inspect_fails_on_other_files(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\x80\x04rubbish")
    for name in (tmp_path / "x", "missing.safetensors", "no-such-name", tmp_path):
        result = run("inspect", name)
        assert result.exit_code == 1
        assert len(result.stderr.splitlines()) == 1
        assert result.stderr.startswith("error: ")


def test_models_are_added_listed_and_shown(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    def build(_recipe: Any, _temporary: Path, target: Path, tell: Any) -> None:
        for step in sources.STEPS:
            tell(step)
        target.mkdir()
        (target / sources.MANIFEST).write_text('{"sha256": "abc"}', "utf-8")

    assert "smollm2" in run("models", "list").stdout
    assert "path: not added" in run("models", "show", "smollm2").stdout
    monkeypatch.setattr(sources, "_build", build)
    assert "is ready in" in run("models", "add", "smollm2").stdout
    listed = {each["name"]: each for each in json.loads(run("models", "list", "--json").stdout)}
    assert listed["smollm2"]["path"] == str(cache / "models" / "smollm2")
    assert listed["emoji"]["path"] is None
    assert json.loads(run("models", "show", "smollm2", "--json").stdout)["sha256"] == "abc"
    for command in ("add", "show"):
        result = run("models", command, "unknown")
        assert (result.exit_code, result.stderr.count("\n")) == (1, 1)


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
    stand_in = types.ModuleType("stand_in_command")
    stand_in.app = typer.Typer()  # type: ignore[attr-defined]

    @stand_in.app.command()  # type: ignore[untyped-decorator]
    def fail() -> None:
        raise error

    monkeypatch.setitem(sys.modules, "stand_in_command", stand_in)
    with_command(monkeypatch, "extra", "stand_in_command:app")


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
heavy = {"torch", "transformers", "fastapi", "server"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", program, str(good)], check=True, timeout=60)


def test_a_package_that_is_missing_during_a_command_is_named(
    monkeypatch: pytest.MonkeyPatch, good: Path
) -> None:
    def load(path: Path) -> None:
        raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")

    monkeypatch.setattr("guard.commands.check.load_config", load)
    result = run("check", good)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: this command needs matplotlib: install the extra")
