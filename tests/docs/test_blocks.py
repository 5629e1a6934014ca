"""The code of the pages: commands exist with their options, files hold, Python runs."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer.main

from guard.cli import app
from guard.config.pattern_lists import read_patterns
from guard.config.schema import load_config
from guard.data.concept import read_concept
from guard.errors import ConfigError
from guard.verdict import GuardVerdict, Verdict
from tests.docs.pages import PAGES, ROOT, Block, blocks, name, spans
from tests.steering.adapters import save_settings

PACKAGES = {"guard", "steering", "classifiers", "server", "benchmarks", "examples"}
NEEDS_MODEL = re.compile(r"\b(client|attached|ImageModel|vllm|llm)\b")
"""What a block names that the fast tests do not have."""
ELSEWHERE = re.compile(r": no (guard|policy|upstream) |: no package en_core_web_sm is installed")
"""Problems of an excerpt that refers to what the excerpt leaves out, or to a reader's own model."""
PYTHON = blocks("python")


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.place)
def test_python_parses_and_imports_what_exists(block: Block) -> None:
    for node in ast.walk(ast.parse(block.code)):
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] in PACKAGES:
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, alias.name) for alias in node.names)


@pytest.mark.parametrize(
    "block",
    [block for block in PYTHON if not NEEDS_MODEL.search(block.code)],
    ids=lambda block: block.place,
)
def test_python_without_a_model_runs(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    exec(compile(block.code, block.place, "exec"), {})


@pytest.mark.parametrize("block", blocks("toml"), ids=lambda block: block.place)
def test_toml_holds(block: Block, tmp_path: Path) -> None:
    if block.code.startswith("[project."):
        assert "entry-points" in tomllib.loads(block.code)["project"]
        return
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    adapter = tmp_path / "adapters" / "colours"
    adapter.mkdir(parents=True)
    save_settings(adapter, r=4, lora_alpha=8, target_modules=["q_proj"])
    (adapter / "adapter_model.safetensors").touch()
    path = tmp_path / "block.toml"
    path.write_text(block.code, encoding="utf-8")
    if re.search(r"^\[\[(words|regex)\]\]", block.code, re.MULTILINE):
        read_patterns(str(path))
        return
    try:
        load_config(path)
    except ConfigError as error:
        whole = name(block.page) == "README.md"
        assert not [p for p in error.problems if whole or not ELSEWHERE.search(p)]


@pytest.mark.parametrize("block", blocks("json"), ids=lambda block: block.place)
def test_json_holds(block: Block, tmp_path: Path) -> None:
    value = json.loads(block.code)
    if "outcome" in value:
        assert value.keys() == {field.name for field in fields(Verdict)}
        for guard in value["guards"]:
            assert guard.keys() == {field.name for field in fields(GuardVerdict)}
    if "phrases" in value:
        path = tmp_path / "concept.json"
        path.write_text(block.code, encoding="utf-8")
        read_concept(path)


def _commands() -> list[tuple[str, str]]:
    """Every shell command of the pages, with its page."""
    found = []
    for block in blocks("", "sh"):
        for line in re.sub(r"\\\n\s*", "", block.code).splitlines():
            found.append((name(block.page), line.strip().removeprefix("$ ")))
    for page in PAGES:
        found += [(name(page), span) for span in spans(page)]
    return [(page, re.sub(r"^(\w+=\S* )+", "", line)) for page, line in found]


COMMANDS = sorted(set(_commands()))


def _of(program: str) -> list[Any]:
    lines = [(page, line) for page, line in COMMANDS if line.startswith(f"{program} ")]
    return [pytest.param(line, id=f"{page}: {line}") for page, line in lines]


@pytest.mark.parametrize("line", _of("guard"))
def test_commands_have_their_options(line: str) -> None:
    command: Any = typer.main.get_command(app)
    words = shlex.split(line, comments=True)[1:]
    while hasattr(command, "commands") and words:
        word = words.pop(0)
        if word.isupper() or word.startswith("-"):
            return
        assert word in command.commands, f"no command {word!r}"
        command = command.commands[word]
    context = command.context_class(command, info_name=command.name)
    command.make_parser(context).parse_args(words)


@pytest.mark.parametrize("line", _of("python -m"))
def test_modules_that_are_run_exist(line: str) -> None:
    assert importlib.util.find_spec(shlex.split(line, comments=True)[2])


@pytest.mark.parametrize("line", _of("make"))
def test_targets_exist(line: str) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert shlex.split(line, comments=True)[1] in targets


def test_extras_exist() -> None:
    known = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    wanted = {
        extra
        for page in PAGES
        for given in re.findall(r"inference-guard\[([\w,]+)\]", page.read_text(encoding="utf-8"))
        for extra in given.split(",")
    }
    assert wanted <= set(known)
