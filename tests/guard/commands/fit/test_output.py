"""Where a fit would write is checked before it begins."""

from __future__ import annotations

from pathlib import Path

import pytest

from guard.commands.fit.output import checked_concept, require_artifact_name
from guard.errors import DataError


def test_a_place_that_can_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    require_artifact_name(tmp_path / "new" / "folder" / "g.safetensors")
    assert not [*tmp_path.iterdir()]


def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "g.safetensors").mkdir()
    with pytest.raises(DataError, match="is a file, not a folder"):
        require_artifact_name(tmp_path / "file" / "g.safetensors")
    with pytest.raises(DataError, match="is a folder: give the name of a file"):
        require_artifact_name(tmp_path / "g.safetensors")
    with pytest.raises(DataError, match=r"ends in \.safetensors"):
        require_artifact_name(tmp_path / "g.pt")
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(DataError, match="cannot be written to"):
        require_artifact_name(tmp_path / "other.safetensors")


@pytest.mark.parametrize("concept", ["", "x" * 121, "a\tb"])
def test_concepts_that_no_artifact_can_have(concept: str) -> None:
    with pytest.raises(DataError, match="--concept"):
        checked_concept(concept)
    with pytest.raises(DataError, match="--description"):
        checked_concept("a/b", "c\td")
