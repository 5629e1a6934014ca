from __future__ import annotations

from pathlib import Path

import pytest

from guard.artifact import Artifact
from guard.artifact_store import ArtifactStore
from guard.errors import ArtifactError
from tests.guard.conftest import MakeArtifact


@pytest.fixture
def store(cache: Path) -> ArtifactStore:
    return ArtifactStore()


def added(store: ArtifactStore, artifact: Artifact, folder: Path) -> str:
    path = folder / "given.safetensors"
    artifact.save(path)
    return store.add(path)


def test_an_added_artifact_is_found_by_digest_and_concept(
    store: ArtifactStore, make_artifact: MakeArtifact, tmp_path: Path, cache: Path
) -> None:
    artifact = make_artifact()
    digest = added(store, artifact, tmp_path)
    assert digest == artifact.digest
    assert (cache / "artifacts" / f"{digest}.safetensors").is_file()
    for name in (digest, digest[:12], "character/harry-potter", "harry-potter"):
        assert store.get(name).digest == digest


def test_the_same_content_is_kept_once(
    store: ArtifactStore, make_artifact: MakeArtifact, tmp_path: Path
) -> None:
    assert added(store, make_artifact(), tmp_path) == added(store, make_artifact(), tmp_path)
    assert len(store.list()) == 1


def test_an_ambiguous_name_lists_the_choices(
    store: ArtifactStore, make_artifact: MakeArtifact, tmp_path: Path
) -> None:
    digests = [added(store, make_artifact(description=d), tmp_path) for d in ("one", "two")]
    with pytest.raises(ArtifactError, match="several") as error:
        store.get("harry-potter")
    assert all(digest[:12] in str(error.value) for digest in digests)


def test_a_list_is_sorted_by_concept(
    store: ArtifactStore, make_artifact: MakeArtifact, tmp_path: Path
) -> None:
    for concept in ("b", "a"):
        added(store, make_artifact(concept=concept), tmp_path)
    assert [artifact.meta.concept for artifact in store.list()] == ["a", "b"]


def test_a_missing_artifact_is_reported(store: ArtifactStore) -> None:
    assert list(store.list()) == []
    for name in ("nothing", "0" * 64, "../../etc/passwd", ""):
        with pytest.raises(ArtifactError, match="no artifact"):
            store.get(name)


def test_a_file_with_other_content_than_its_name_says_is_refused(
    store: ArtifactStore, make_artifact: MakeArtifact, tmp_path: Path
) -> None:
    digest = added(store, make_artifact(), tmp_path)
    make_artifact(description="another").save(store.folder / f"{digest}.safetensors")
    with pytest.raises(ArtifactError, match="does not have the digest"):
        store.get(digest)


def test_a_damaged_artifact_is_not_added(store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"rubbish")
    with pytest.raises(ArtifactError):
        store.add(tmp_path / "x")
    assert not store.folder.exists()
