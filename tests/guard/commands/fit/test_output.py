"""Where a fit would write is checked before it begins."""

from __future__ import annotations

from pathlib import Path

import pytest

from guard.commands.fit.output import checked_concept, require_artifact_name
from guard.errors import DataError


def test_a_place_that_can_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    require_artifact_name(tmp_path / "new" / "folder" / "g.safetensors")
    assert not [*tmp_path.iterdir()]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "g.safetensors").mkdir()
    with pytest.raises(DataError, match="is a file, not a folder"):
        require_artifact_name(tmp_path / "file" / "g.safetensors")
    with pytest.raises(DataError, match="is a folder: give the name of a file"):
        require_artifact_name(tmp_path / "g.safetensors")
    with pytest.raises(DataError, match=r"ends in \.safetensors"):
        require_artifact_name(tmp_path / "g.pt")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's /proc")
def test_a_place_whose_permissions_lie_is_refused() -> None:
    # for root this folder is writable, says the system
    with pytest.raises(DataError, match=r"/proc cannot be written to \(.+\): choose another"):
        require_artifact_name(Path("/proc/none/other.safetensors"))


@pytest.mark.parametrize("concept", ["", "x" * 121, "a\tb"])
def test_concepts_that_no_artifact_can_have(concept: str) -> None:
    with pytest.raises(DataError, match="--concept"):
        checked_concept(concept)
    with pytest.raises(DataError, match="--description"):
        checked_concept("a/b", "c\td")
