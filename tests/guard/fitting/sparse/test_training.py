"""Sparse autoencoders of states that are made of known features, and their files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from guard.artifact import FittedModel
from guard.errors import ArtifactError, DataError, FingerprintError
from guard.fitting.checkpoints import Checkpoints
from guard.fitting.sparse import training as trainer
from guard.fitting.sparse.autoencoder import Autoencoders, explained
from guard.fitting.sparse.selection import existing, importance, most_telling
from guard.fitting.sparse.selection import trained as train_file
from guard.fitting.sparse.training import Training, train_one
from guard.reporting.progress import Lines

WIDTH, TRUE = 16, 12
MODEL = FittedModel(name="m", architecture="A", fingerprint="f" * 64, layers=2, width=WIDTH)
SMALL = Training(features=24, active=2, updates=300, batch=64, rate=1e-2)
silent = Lines().begin


def directions() -> Tensor:
    drawn = torch.randn(TRUE, WIDTH, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.normalize(drawn, dim=1)


def made(count: int = 1500, seed: int = 0, only: int | None = None) -> tuple[Tensor, Tensor]:
    """States and the features that they are made of: each has two, one of them `only`."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.rand(count, TRUE, generator=generator).argsort(1)[:, :2]
    if only is not None:
        which[:, 0] = only
    size = 2 + torch.rand(count, 2, generator=generator)
    encoded = torch.zeros(count, TRUE).scatter(1, which, size)
    return 5 * encoded @ directions() + 40.0, encoded


@pytest.fixture(scope="module")
def trained() -> Any:
    return train_one(made()[0], SMALL, Checkpoints(None))


def test_the_features_that_states_are_made_of_are_found(trained: Any) -> None:
    states, _ = made(400, seed=9)
    figures = explained(trained, states)
    assert figures["explained"] > 0.9 and 1.0 < figures["active"] < 4.0
    cosines = directions() @ trained.features.writes.T
    assert float(cosines.amax(1).median()) > 0.9
    torch.testing.assert_close(trained.features.writes.norm(dim=1), torch.ones(24))


def test_it_is_in_the_units_of_the_states(trained: Any) -> None:
    states, _ = made(50, seed=9)
    encoded = trained.encode(states)
    features = trained.features
    for row in range(5):
        by_hand = trained.centre.clone()
        for i in range(trained.count):
            z = features.reads[i] @ states[row] + features.offsets[i]
            if z > features.cuts[i]:
                by_hand = by_hand + z * features.writes[i]
        torch.testing.assert_close(trained.decode(encoded)[row], by_hand, rtol=1e-4, atol=1e-3)
    twice = train_one(2 * made()[0], SMALL, Checkpoints(None))
    torch.testing.assert_close(twice.encode(2 * states), 2 * encoded, rtol=0.05, atol=1.0)


def test_a_training_that_was_killed_goes_on_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "EVERY", 60)
    states = made(500)[0]
    whole = train_one(states, SMALL, Checkpoints(None))
    target, step = tmp_path / "a.safetensors", trainer._update

    def killed(*arguments: Any) -> None:
        if arguments[-1] == 200:
            raise KeyboardInterrupt
        step(*arguments)

    monkeypatch.setattr(trainer, "_update", killed)
    with pytest.raises(KeyboardInterrupt):
        train_one(states, SMALL, Checkpoints(target, "this"))
    # the last checkpoint alone is kept
    assert [path.stem for path in (tmp_path / "a.parts").iterdir()] == ["states"]
    taken: list[int] = []

    def counted(*arguments: Any) -> None:
        taken.append(arguments[-1])
        step(*arguments)

    monkeypatch.setattr(trainer, "_update", counted)
    again = train_one(states, SMALL, Checkpoints(target, "this"))
    assert taken == list(range(180, 300))
    assert all(map(torch.equal, again.features.parts, whole.features.parts))
    assert torch.equal(again.centre, whole.centre)


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    path, states = tmp_path / "x.autoencoder.safetensors", {"3": made(400)[0]}
    assert existing(path, MODEL, SMALL) is None
    first = train_file(path, MODEL, states, SMALL, silent)
    assert path.is_file() and not path.with_suffix(".parts").exists()
    assert first.about.figures["3"]["explained"] > 0.5
    again = existing(path, MODEL, SMALL, {"features", "rate"})
    assert again is not None and again.about == first.about
    assert all(
        map(torch.equal, again.by_place["3"].features.parts, first.by_place["3"].features.parts)
    )
    other = MODEL.model_copy(update={"fingerprint": "0" * 64, "name": "other"})
    with pytest.raises(FingerprintError, match="is of the model 'm', not of 'other'"):
        existing(path, other, SMALL)
    more = replace(SMALL, features=48, updates=5)
    assert existing(path, MODEL, more, {"rate"}) is not None
    with pytest.raises(DataError, match="--features 48: .* was trained with 24: leave the option"):
        existing(path, MODEL, more, {"features"})
    with pytest.raises(DataError, match="has autoencoders of 3 and none of 4"):
        again.require_places(["3", "4"], path)


@pytest.mark.parametrize("content", ["text", "tensors", "nan"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.safetensors"
    if content == "text":
        path.write_text("no autoencoder")
    elif content == "tensors":
        save_file({"w": torch.ones(2)}, path)
    else:
        train_file(path, MODEL, {"3": made(400)[0]}, replace(SMALL, updates=2), silent)
        found = Autoencoders.load(path)
        found.by_place["3"].features.reads[0, 0] = torch.nan
        found.save(path)
    with pytest.raises(ArtifactError, match="is no sparse autoencoder .*: give another file"):
        Autoencoders.load(path)


@pytest.mark.parametrize(
    ("states", "training", "fault"),
    [
        (made(199)[0], SMALL, "needs 200 states at least, and the prompts have 199 tokens"),
        (torch.ones(300, WIDTH), SMALL, "all states of 3 are alike"),
        (made(300)[0], replace(SMALL, active=25), "25 features cannot be active of 24"),
        (made(300)[0], replace(SMALL, rate=1e30), "is not finite: try a lower --rate"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    tmp_path: Path, states: Tensor, training: Training, fault: str
) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(DataError, match=fault):
        train_file(path, MODEL, {"3": states}, training, silent)
    assert not path.exists()


def test_the_feature_of_a_concept_is_the_most_telling_one(trained: Any) -> None:
    about, others = made(300, seed=3, only=4)[0], made(300, seed=4)[0]
    scores = importance(trained, about, others)
    shares = []
    for states in (about, others):
        mean = trained.encode(states).double().mean(0)
        shares.append(mean / mean.sum())
    torch.testing.assert_close(scores, shares[0] - shares[1])
    best = most_telling(scores, 3, "3")
    assert len(best) <= 3 and bool((scores[best].diff() <= 0).all())
    assert float(trained.features.writes[best[0]] @ directions()[4]) > 0.9
    with pytest.raises(DataError, match="no feature of 3 is more active"):
        most_telling(torch.zeros(5), 3, "3")
