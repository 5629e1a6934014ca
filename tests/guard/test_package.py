from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import pytest

import guard

PUBLIC = (
    "artifact artifact_store audit cache cli errors verdict commands.artifact.artifacts "
    "commands.artifact.inspect commands.configuration.check commands.demo.command "
    "commands.eval.command commands.fit.command commands.models config.artifact_paths "
    "config.checks config.kinds config.schema config.toml_lines data.prompts "
    "models.sources reporting.progress tenants.keys"
)


def test_importing_the_core_loads_no_engine() -> None:
    program = f"""
import importlib, sys
import guard
for name in {PUBLIC.split()!r}:
    importlib.import_module("guard." + name)
heavy = {{"torch", "transformers", "fastapi", "server"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, cwd=Path.cwd())


def test_attached_is_fetched_when_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = types.ModuleType("guard.attach")
    stand_in.attached = object()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "guard.attach", stand_in)
    assert guard.attached is stand_in.attached


def test_forget_is_fetched_when_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = types.ModuleType("guard.forgetting")
    stand_in.forget = object()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "guard.forgetting", stand_in)
    assert guard.forget is stand_in.forget


def test_other_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        guard.nothing  # noqa: B018
