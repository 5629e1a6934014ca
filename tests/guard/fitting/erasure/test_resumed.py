"""A profile whose computation was killed goes on from its finished parts, to the same bits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save_file

from guard.data.bank.bank import topics
from guard.fitting.checkpoints import Checkpoints
from guard.fitting.erasure import profiling
from guard.fitting.erasure.profile import Profile, profile_path
from guard.fitting.erasure.profiling import profile_of
from guard.fitting.suppression import strangers as room
from guard.fitting.suppression.strangers import strangers_of
from tests.guard.fitting.erasure.words import WordModel

SILENT: Any = lambda what, total: lambda count=1: None  # noqa: E731


class Killed(BaseException):
    """In place of the signal."""


class Stages:
    """The stages that were begun; at the one with the number `until` the process is killed."""

    def __init__(self, until: int = 10**6) -> None:
        self.until, self.begun = until, dict[str, int]()

    def __call__(self, stage: str, total: int) -> Callable[[int], None]:
        if len(self.begun) == self.until:
            raise Killed
        self.begun[stage] = total
        return lambda count: None


class Model(WordModel):
    """Reads prompts so many times, and is killed. In each process its words have the same numbers,
    as a tokenizer's."""

    numbers: ClassVar[dict[str, int]] = {}

    def __init__(self, readings: int = 10**6) -> None:
        super().__init__({})
        self._words, self.readings = self.numbers, readings

    def states(self, *arguments: Any) -> Any:
        self.readings -= 1
        if self.readings < 0:
            raise Killed
        return super().states(*arguments)


def _bytes(folder: Path, monkeypatch: pytest.MonkeyPatch, made: Callable[[], object]) -> bytes:
    """The one file that is made in a cache of its own."""
    monkeypatch.setenv("GUARD_CACHE", str(folder))
    made()
    (path,) = (folder / "profiles").iterdir()
    return path.read_bytes()


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """A part of the bank, in parts of a hundred prompts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profiling, "topics", lambda: topics()[::6])
        patch.setattr(profiling, "READ", 100)
        yield


@pytest.fixture(scope="module")
def whole(small: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, dict[str, int]]:
    """A profile that was computed at once, and its stages."""
    with pytest.MonkeyPatch.context() as patch:
        stages = Stages()
        folder = tmp_path_factory.mktemp("whole")
        made = _bytes(folder, patch, lambda: profile_of(Model(), stages))  # type: ignore[arg-type]
        return made, stages.begun


def _parts(model: WordModel) -> Path:
    return profile_path(model.fitted_model).with_suffix(".parts")


def test_a_profile_that_was_killed_at_every_stage_is_the_same(
    whole: tuple[bytes, dict[str, int]], cache: Path
) -> None:
    killed = 0
    while True:
        try:
            # the next part, which may have two stages
            profile_of(Model(), Stages(until=3))  # type: ignore[arg-type]
            break
        except Killed:
            assert _parts(Model()).is_dir()
            killed += 1
    assert killed >= 3
    (path,) = (cache / "profiles").iterdir()
    assert path.read_bytes() == whole[0]


def test_what_was_read_is_not_read_again(whole: tuple[bytes, dict[str, int]], cache: Path) -> None:
    with pytest.raises(Killed):
        profile_of(Model(3), SILENT)  # type: ignore[arg-type]
    stages = Stages()
    profile_of(Model(), stages)  # type: ignore[arg-type]
    assert stages.begun["reading the bank"] == whole[1]["reading the bank"] - 3 * 100
    assert stages.begun["going on behind finished parts"] == 3
    (path,) = (cache / "profiles").iterdir()
    assert path.read_bytes() == whole[0]


@pytest.mark.parametrize("change", ["model", "bank", "precision", "recipe", "damaged"])
def test_parts_of_something_else_are_computed_anew_with_a_line(
    change: str,
    whole: tuple[bytes, dict[str, int]],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with monkeypatch.context() as patch:
        other = Model(2)
        if change == "model":
            # of the same place
            other.fitted_model = other.fitted_model.model_copy(
                update={"fingerprint": "a" * 16 + "b" * 48}
            )
        elif change == "bank":
            patch.setattr(profiling, "digest", lambda: "another")
        elif change == "recipe":
            patch.setattr(profiling, "RECIPE", 0)
        elif change == "precision":
            other.precision = "bfloat16"
        with pytest.raises(Killed):
            profile_of(other, SILENT)  # type: ignore[arg-type]
    assert len([*_parts(other).iterdir()]) == 2
    if change == "damaged":
        for part in _parts(other).iterdir():
            part.write_bytes(part.read_bytes()[:-1])
    stages = Stages()
    with caplog.at_level(logging.WARNING):
        profile_of(Model(), stages)  # type: ignore[arg-type]
    (line,) = caplog.messages
    assert ("cannot be read" if change == "damaged" else "of another model") in line
    assert stages.begun == whole[1]
    (path,) = (cache / "profiles").iterdir()
    assert path.read_bytes() == whole[0]


def test_whoever_loads_a_finished_profile_leaves_the_parts_of_a_computation(
    whole: tuple[bytes, dict[str, int]], cache: Path
) -> None:
    model = Model()
    path = profile_path(model.fitted_model)
    path.parent.mkdir(parents=True)
    path.write_bytes(whole[0])
    with pytest.raises(Killed):
        profile_of(Model(1), SILENT, again=True)  # type: ignore[arg-type]
    assert path.read_bytes() == whole[0] and _parts(model).is_dir()
    profile_of(model, Stages(until=0))  # type: ignore[arg-type]
    assert _parts(model).is_dir()
    profile_of(model, SILENT, again=True)  # type: ignore[arg-type]
    assert [*path.parent.iterdir()] == [path] and path.read_bytes() == whole[0]


def test_what_names_share_goes_on_too(
    whole: tuple[bytes, dict[str, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "FOR_FIT", 60)
    monkeypatch.setattr(room, "HELD_OUT", 40)
    file = tmp_path / "whole.safetensors"
    file.write_bytes(whole[0])
    profile = Profile.load(file)

    def killed() -> None:
        for _ in range(3):
            with pytest.raises(Killed):
                strangers_of(Model(1), profile, SILENT)  # type: ignore[arg-type]
        strangers_of(Model(), profile, SILENT)  # type: ignore[arg-type]

    at_once = _bytes(
        tmp_path / "a",
        monkeypatch,
        lambda: strangers_of(Model(), profile, SILENT),  # type: ignore[arg-type]
    )
    assert _bytes(tmp_path / "b", monkeypatch, killed) == at_once


def test_a_part_that_cannot_be_kept_does_not_end_the_computation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file.parts").write_text("no folder")
    kept = Checkpoints(tmp_path / "file.safetensors", "this model")
    assert torch.equal(kept.tensors("a", lambda: {"x": torch.ones(2)})["x"], torch.ones(2))
    assert "cannot be kept" in caplog.messages[-1] and "a" not in kept


def test_parts_come_back_as_they_were(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path / "file.safetensors", "this model")
    values = {"floats": [0.1, float("inf")], "texts": ["ä\n"]}
    for _ in range(2):
        assert kept.value("b-0.4", lambda: values) == values
        assert kept.tensors("a", lambda: {"x": torch.eye(3).T})["x"].is_contiguous()
    assert kept.count == 2
    save_file({"x": torch.ones(1)}, tmp_path / "file.parts" / "foreign.safetensors")
    assert kept.count == 2
    kept.clear()
    assert kept.count == 0 and not [*tmp_path.iterdir()]
