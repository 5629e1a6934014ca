from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from guard.models import sources
from tests.guard.commands.running import run

pytestmark = pytest.mark.usefixtures("plain_terminal")


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
