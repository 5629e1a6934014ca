from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.guard.commands.running import run
from tests.guard.conftest import MakeArtifact

pytestmark = pytest.mark.usefixtures("plain_terminal")


def test_an_added_artifact_is_listed_and_can_be_inspected(
    tmp_path: Path, make_artifact: MakeArtifact
) -> None:
    artifact = make_artifact()
    artifact.save(tmp_path / "hp.safetensors")
    result = run("artifacts", "add", tmp_path / "hp.safetensors")
    assert result.exit_code == 0, result.output
    assert f"sha256:{artifact.digest}" in result.stdout
    for words in (artifact.short_digest, "character/harry-potter", "steer", "language", "tiny"):
        assert words in run("artifacts", "list").stdout
    for name in (artifact.short_digest, "harry-potter"):
        contents = json.loads(run("inspect", name, "--json").stdout)
        assert contents["digest"] == artifact.digest


def test_json_has_the_same_entries_when_artifacts_are_added_and_listed(
    tmp_path: Path, make_artifact: MakeArtifact
) -> None:
    files = [tmp_path / f"{name}.safetensors" for name in ("a", "b")]
    for file in files:
        make_artifact(concept=f"character/{file.stem}").save(file)
    added = json.loads(run("artifacts", "add", *files, "--json").stdout)
    assert [entry["concept"] for entry in added] == ["character/a", "character/b"]
    assert added[0]["model"]["fingerprint"] == "f" * 64
    assert json.loads(run("artifacts", "list", "--json").stdout) == added


def test_no_artifact_is_kept_where_one_is_damaged(
    tmp_path: Path, make_artifact: MakeArtifact
) -> None:
    make_artifact().save(tmp_path / "good.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"rubbish")
    result = run("artifacts", "add", tmp_path / "good.safetensors", tmp_path / "bad.safetensors")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert json.loads(run("artifacts", "list", "--json").stdout) == []


def test_an_empty_cache_is_an_empty_list() -> None:
    result = run("artifacts", "list")
    assert result.exit_code == 0
    assert "digest" in result.stdout
