"""A profile is written and read again; files that are none, or stale, say what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from guard.artifact import FittedModel
from guard.errors import ArtifactError
from guard.fitting.erasure import profile as room
from guard.fitting.erasure.profile import About, Profile, own_profile, profile_path
from guard.fitting.steering.gates import RetainStatistics, TokenStates

WIDTH, LAYERS = 6, 2
MODEL = FittedModel(name="tiny", architecture="llama", fingerprint="f" * 64, layers=8, width=WIDTH)


def _states(lengths: tuple[int, ...], seed: int) -> TokenStates:
    generator = torch.Generator().manual_seed(seed)
    count = sum(lengths)
    return TokenStates(
        states=torch.randn(count, LAYERS, WIDTH, generator=generator).half(),
        sequence=torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)),
        behind_prefix=torch.cat([torch.arange(n) > 0 for n in lengths]),
        count=len(lengths),
    )


@pytest.fixture
def profile() -> Profile:
    known = _states((3, 4, 2, 5), 1)
    plain = torch.zeros(known.count, dtype=torch.bool)
    statistics = RetainStatistics.of(known, plain, [0, 1])
    return Profile(
        about=About(
            model=MODEL,
            bank=room.digest(),
            sense_layers=(2, 3),
            act_layers=(4, 5),
            strength=0.7,
            weight=statistics.weight,
            figures={"reference_recall": 0.5},
        ),
        statistics=statistics,
        directions=torch.ones(2, WIDTH),
        sample=known,
        held_out=_states((2, 2, 7), 2),
        answered=_states((9,), 3),
        centres=torch.zeros(5, WIDTH),
    )


def test_a_profile_comes_back_as_it_was(profile: Profile, cache: Path) -> None:
    path = profile_path(MODEL)
    assert own_profile(MODEL) is None
    profile.save(path)
    again = own_profile(MODEL)
    assert again is not None and again.about == profile.about
    assert path.parent == cache / "profiles" and not list(path.parent.glob("*.unfinished"))
    for name in ("sample", "held_out", "answered"):
        mine, theirs = getattr(profile, name), getattr(again, name)
        assert torch.equal(mine.states, theirs.states) and mine.count == theirs.count
        assert torch.equal(mine.sequence, theirs.sequence)
        assert torch.equal(mine.behind_prefix, theirs.behind_prefix)
    forget = _states((4, 4), 4)
    assert torch.equal(profile.statistics.gate(forget), again.statistics.gate(forget))


def test_one_of_another_bank_or_model_is_refused(
    profile: Profile, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = profile_path(MODEL)
    profile.save(path)
    same_place = MODEL.model_copy(update={"fingerprint": "f" * 16 + "0" * 48})
    with pytest.raises(ArtifactError, match="is of the model tiny"):
        own_profile(same_place)
    monkeypatch.setattr(room, "digest", lambda: "0" * 64)
    with pytest.raises(ArtifactError, match="another retain bank: compute it again"):
        own_profile(MODEL)


def test_a_file_that_is_none_is_refused(profile: Profile, tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(b"no tensors")
    with pytest.raises(ArtifactError, match="is no profile of a model"):
        Profile.load(path)
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(ArtifactError, match="is no profile of a model"):
        Profile.load(path)
    save_file({"gram": torch.ones(2, 2)}, path, {"profile": profile.about.model_dump_json()})
    with pytest.raises(ArtifactError, match="is no profile of a model"):
        Profile.load(path)


def test_means_are_of_the_tokens_behind_the_prefix() -> None:
    states = _states((3, 2), 5)
    expected = states.states[1:3, 1].float().mean(0)
    assert torch.allclose(states.means(1)[0], expected)
