from __future__ import annotations

from pathlib import Path

import pytest

from guard.artifact_store import ArtifactStore
from guard.config.schema import Config, load_config
from guard.errors import ConfigError
from tests.guard.conftest import MakeArtifact


def load(folder: Path, reference: str) -> Config:
    path = folder / "config.toml"
    path.write_text(f'[[guards]]\nname = "hp"\nartifact = "{reference}"\n', "utf-8")
    return load_config(path)


@pytest.fixture
def digest(tmp_path: Path, make_artifact: MakeArtifact, cache: Path) -> str:
    """The digest of an artifact in the cache."""
    make_artifact().save(tmp_path / "hp.safetensors")
    return ArtifactStore().add(tmp_path / "hp.safetensors")


def test_an_artifact_is_named_by_its_digest(tmp_path: Path, digest: str, cache: Path) -> None:
    for reference in (f"sha256:{digest}", f"sha256:{digest[:12]}", digest, digest[:12]):
        (guard,) = load(tmp_path, reference).guards
        assert guard.artifact == cache / "artifacts" / f"{digest}.safetensors"


def test_a_file_that_is_named_like_a_digest_is_a_file(
    tmp_path: Path, digest: str, make_artifact: MakeArtifact
) -> None:
    make_artifact(description="another").save(tmp_path / digest)
    assert load(tmp_path, digest).guards[0].artifact == tmp_path / digest


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("sha256:" + "0" * 64, "no artifact"),
        ("0" * 12, "no artifact"),
        ("sha256:0123", "is no digest"),
        ("sha256:../hp", "is no digest"),
        ("0123", "does not exist"),
    ],
)
def test_an_unknown_digest_is_reported_with_its_line(
    tmp_path: Path, digest: str, reference: str, reason: str
) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, reference)
    (problem,) = error.value.problems
    assert problem.startswith("line 3: guards[0].artifact: ")
    assert reason in problem
