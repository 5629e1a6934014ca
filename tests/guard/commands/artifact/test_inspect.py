from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.guard.commands.running import run
from tests.guard.conftest import MakeArtifact

pytestmark = pytest.mark.usefixtures("plain_terminal")


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
        "name": "directions",
        "shape": [1, 8],
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
