"""`guard add`: a guard in a configuration, whose comments and order stay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from guard.cli import app
from guard.config.schema import load_config
from tests.guard.conftest import MakeArtifact

CONFIG = """# ours
[server]
default_policy = "books"  # the usual one

[[guards]]
name = "old"
artifact = "old.safetensors"

# who may not be named
[policies.books]
guards = [
    "old",  # since May
]
action = "steer"
"""


@pytest.fixture
def folder(tmp_path: Path, make_artifact: MakeArtifact) -> Path:
    (tmp_path / "guards").mkdir()
    for name in ("old.safetensors", "guards/a.safetensors", "guards/b.safetensors"):
        make_artifact().save(tmp_path / name)
    (tmp_path / "config.toml").write_text(CONFIG)
    (tmp_path / "guards" / "both.toml").write_text(
        '[[guards]]\nname = "a"\nartifact = "a.safetensors"\n'
        '[[guards]]\nname = "b"\nartifact = "b.safetensors"\n'
    )
    return tmp_path


def _add(folder: Path, guard: str, *more: str) -> Result:
    arguments = ["add", str(folder / guard), "--config", str(folder / "config.toml"), *more]
    return CliRunner().invoke(app, arguments)


def test_tables_have_an_empty_line_before_them(folder: Path) -> None:
    (folder / "config.toml").write_text("[server]\nport = 9140\n")
    for _ in range(2):
        assert _add(folder, "guards/both.toml", "--policy", "new").exit_code == 0
    lines = (folder / "config.toml").read_text().split("\n")
    heads = [number for number, line in enumerate(lines) if line.startswith("[")]
    assert [lines[number] for number in heads[1:]] == [
        "[[guards]]",
        "[[guards]]",
        "[policies.new]",
    ]
    assert all(lines[number - 1] == "" for number in heads[1:])


def test_comments_and_order_stay(folder: Path) -> None:
    added = _add(folder, "guards/both.toml", "--policy", "books")
    assert added.exit_code == 0, added.output
    text = (folder / "config.toml").read_text()
    for kept in ("# ours", "# the usual one", "# who may not be named", "# since May"):
        assert kept in text
    config = load_config(folder / "config.toml")
    assert config.policies["books"].guards == ("old", "a", "b")
    assert [guard.name for guard in config.guards] == ["old", "a", "b"]
    assert 'artifact = "guards/a.safetensors"' in text
    again = _add(folder, "guards/both.toml", "--policy", "books", "--json")
    assert json.loads(again.stdout)["added"] == []
    assert (folder / "config.toml").read_text() == text


def test_a_policy_that_is_not_there_is_made(folder: Path) -> None:
    assert _add(folder, "guards/a.safetensors", "--policy", "people").exit_code == 0
    config = load_config(folder / "config.toml")
    assert config.policies["people"].guards == ("a",)
    assert config.policies["books"].guards == ("old",)
    (folder / "config.toml").write_text("")
    assert _add(folder, "guards/a.safetensors", "--policy", "people").exit_code == 0
    assert load_config(folder / "config.toml").policies["people"].guards == ("a",)


@pytest.mark.parametrize(
    ("config", "guard", "policy", "message"),
    [
        (CONFIG, "guards/a.safetensors", "none", "policy 'none' has no guards"),
        (CONFIG, "guards/none.toml", "books", "cannot be read"),
        (CONFIG.replace("old.s", "new.s"), "old.safetensors", "books", "has a guard 'old' already"),
        (CONFIG + "nonsense = 1\n", "guards/a.safetensors", "books", "would not hold with it"),
        ("[[guards", "guards/a.safetensors", "books", "is no TOML"),
        (
            CONFIG.replace('guards = [\n    "old",  # since May\n]', "guards = 3"),
            "guards/a.safetensors",
            "books",
            "guards is no list",
        ),
    ],
)
def test_where_it_cannot_be_nothing_changes(
    folder: Path, config: str, guard: str, policy: str, message: str
) -> None:
    (folder / "config.toml").write_text(config)
    added = _add(folder, guard, "--policy", policy)
    assert added.exit_code == 1 and message in " ".join(added.output.split())
    assert (folder / "config.toml").read_text() == config
    assert sorted(path.name for path in folder.glob(".*")) == []


def test_a_list_of_patterns_redacts_answers(folder: Path) -> None:
    names = folder / "guards" / "names.toml"
    names.write_text('[[words]]\nlabel = "NAME"\nwords = ["Frankenstein"]\n')
    for policy in ("books", "names-alone"):
        added = _add(folder, "guards/names.toml", "--policy", policy)
        assert added.exit_code == 0, added.output
        config = load_config(folder / "config.toml")
        screen = config.policies[policy].screen
        assert screen.actions == {"names": "redact"} and screen.looks == {"names": ("response",)}
    (entry,) = config.patterns
    assert entry.name == "names" and Path(entry.source) == names
    assert config.policies["books"].guards == ("old", "names")
    assert config.policies["books"].action == "steer"
    text = (folder / "config.toml").read_text()
    assert "# since May" in text and 'source = "guards/names.toml"' in text
    # what somebody has set since stays
    (folder / "config.toml").write_text(text.replace('names = "redact"', 'names = "block"', 1))
    assert _add(folder, "guards/names.toml", "--policy", "books").exit_code == 0
    actions = load_config(folder / "config.toml").policies["books"].screen.actions
    assert actions == {"names": "block"}
    # and so does a policy that blocks by the list, without a word about screens
    blocking = '[[patterns]]\nname = "names"\nsource = "guards/names.toml"\n\n'
    blocking += '[policies.p]\nguards = ["names"]\naction = "block"\n'
    (folder / "config.toml").write_text(blocking)
    assert _add(folder, "guards/names.toml", "--policy", "p").exit_code == 0
    assert (folder / "config.toml").read_text() == blocking


def test_a_list_of_patterns_blocks_requests_and_answers_where_that_is_asked_for(
    folder: Path,
) -> None:
    names = folder / "guards" / "names.toml"
    names.write_text('[[words]]\nlabel = "NAME"\nwords = ["Frankenstein"]\ntypos = true\n')
    added = _add(folder, "guards/names.toml", "--policy", "books", "--block")
    assert added.exit_code == 0, added.output
    screen = load_config(folder / "config.toml").policies["books"].screen
    assert screen.actions == {"names": "block"} and screen.looks == {}
    refused = _add(folder, "guards/one.safetensors", "--policy", "books", "--block")
    assert refused.exit_code == 1
    assert "--block is for a list of patterns" in " ".join(refused.output.split())
