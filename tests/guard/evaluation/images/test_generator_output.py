"""Policies that look at images in the drawer: what a prompt looks like before and afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from guard.config.schema import Config, load_config
from guard.errors import DataError
from guard.evaluation.images.generator import EngineImageGenerator
from guard.evaluation.images.interface import GeneratedImage
from steering.engines.diffusion.families import Family
from steering.methods import METHODS
from tests.guard.evaluation.images.test_generator import _quiet, _Stubborn, _suite
from tests.guard.toy_images import restack, save_drawn_latents
from tests.server.tiny_pipeline import save_guards, save_pipeline

POLICIES = """
[[guards]]
name = "knife"
artifact = "knife.safetensors"
[[guards]]
name = "look"
artifact = "look.safetensors"
[policies.look]
guards = ["look"]
[policies.watched]
guards = ["look"]
action = "observe"
[policies.open]
guards = ["look"]
on_error = "open"
[policies.replace]
guards = ["look"]
fallback = "replace"
replacement = "a cat"
[policies.both]
guards = ["knife", "look"]
[policies.both-block]
guards = ["knife", "look"]
action = "block"
[policies.both-replace]
guards = ["knife", "look"]
fallback = "replace"
replacement = "a cat"
[policies.both-relapse]
guards = ["knife", "look"]
fallback = "replace"
replacement = "a knife"
"""
CAT, DOG, KNIFE = "a cat", "a dog", "a knife"
NEVER = 1e6


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Family]:
    folder = tmp_path_factory.mktemp("looking")
    family = save_pipeline(folder / "pipeline")
    save_guards(folder, family)
    save_drawn_latents(folder / "look.safetensors", family)
    (folder / "config.toml").write_text(POLICIES, "utf-8")
    return load_config(folder / "config.toml"), family


def drawer_of(made: tuple[Config, Family], threshold: float = NEVER) -> EngineImageGenerator:
    config, family = made
    knife, look = config.guards
    changed = (knife, look.model_copy(update={"threshold": threshold}))
    return EngineImageGenerator(config.model_copy(update={"guards": changed}), _suite(), family)


def draw(
    drawer: EngineImageGenerator,
    prompts: Sequence[str],
    policy: str | None,
    seeds: Sequence[int] | None = None,
) -> list[GeneratedImage]:
    given = range(len(prompts)) if seeds is None else seeds
    return drawer.generate(prompts, given, [policy] * len(prompts), _quiet)


def same(one: GeneratedImage, other: GeneratedImage) -> bool:
    return bool(np.array_equal(one.image, other.image)) and one.image is not None


@pytest.fixture(scope="module")
def apart(made: tuple[Config, Family]) -> tuple[int, float]:
    """A seed with which "a dog" says more to the guard than "a cat", and a threshold between."""
    drawer = drawer_of(made)
    for seed in range(20):
        cat, dog = (one.effect.score for one in draw(drawer, [CAT, DOG], "watched", [seed] * 2))
        assert cat is not None and dog is not None
        if dog > cat + 1e-3:
            return seed, (cat + dog) / 2
    raise AssertionError("no seed tells them apart")


def test_what_is_looked_at_later_is_pending(made: tuple[Config, Family]) -> None:
    drawer = drawer_of(made)
    for policy, pending in (("look", True), ("watched", True), ("both", True), (None, False)):
        (look,) = drawer.inspect([CAT], [policy])
        assert (bool(look.late), look.same, look.blocked) == (pending, True, False)
    changed, blocked = drawer.inspect([KNIFE] * 2, ["both", "both-block"])
    assert changed.late and not changed.same
    # there is no image to wait for
    assert blocked.blocked and not blocked.late


def test_a_image_that_does_not_show_it_stays_the_same(made: tuple[Config, Family]) -> None:
    drawer, prompts = drawer_of(made), [CAT, DOG, CAT, DOG]
    bare = draw(drawer, prompts, None)
    looked = draw(drawer, prompts, "look")
    assert all(map(same, looked, bare))
    assert all(one.effect.same and not one.effect.fired for one in looked)
    # its score is that of the image, which nobody knew before
    assert len({one.effect.score for one in looked}) == 4
    assert all(one.effect.score is None for one in bare)


def test_one_that_shows_it_comes_to_nothing(
    made: tuple[Config, Family], apart: tuple[int, float]
) -> None:
    seed, limit = apart
    drawer = drawer_of(made, limit)
    kept, lost, other = draw(drawer, [CAT, DOG, CAT], "look", [seed] * 3)
    assert lost.image is None
    assert (lost.effect.blocked, lost.effect.fired, lost.effect.same) == (True, True, False)
    assert lost.effect.score is not None and lost.effect.score > limit
    (bare,) = draw(drawer, [CAT], None, [seed])
    assert same(kept, bare) and same(other, bare) and kept.effect.same and not kept.effect.fired


def test_one_that_is_watched_is_told_of_and_shown(
    made: tuple[Config, Family], apart: tuple[int, float]
) -> None:
    seed, limit = apart
    drawer = drawer_of(made, limit)
    (shown,) = draw(drawer, [DOG], "watched", [seed])
    assert (shown.effect.fired, shown.effect.same, shown.effect.blocked) == (True, True, False)
    assert same(shown, *draw(drawer, [DOG], None, [seed]))


def test_the_replacement_is_drawn_with_the_same_seed(
    made: tuple[Config, Family], apart: tuple[int, float]
) -> None:
    seed, limit = apart
    drawer = drawer_of(made, limit)
    told: list[int] = []
    prompts = [CAT, DOG, DOG]
    kept, replaced, again = drawer.generate(prompts, [seed] * 3, ["replace"] * 3, told.append)
    (cat,) = draw(drawer, [CAT], None, [seed])
    assert same(replaced, cat) and same(again, cat) and same(kept, cat)
    assert (replaced.effect.fired, replaced.effect.same, replaced.effect.blocked) == (
        True,
        False,
        False,
    )
    assert kept.effect.same
    assert sum(told) == 3, "progress counts prompts, not images"


def test_unless_it_shows_it_too(made: tuple[Config, Family]) -> None:
    (lost,) = draw(drawer_of(made, -NEVER), [DOG], "replace")
    assert lost.image is None and lost.effect.blocked and lost.effect.fired


@pytest.fixture
def stubborn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of knives cannot be refined."""
    nearest = METHODS["nearest"]
    restack(monkeypatch, "nearest", lambda *given: _Stubborn(nearest.stacked(*given)))


@pytest.mark.usefixtures("stubborn")
def test_a_replacement_for_words_is_looked_at_itself(made: tuple[Config, Family]) -> None:
    silent, strict = drawer_of(made), drawer_of(made, -NEVER)
    for drawer in (silent, strict):
        (look,) = drawer.inspect([KNIFE], ["both-replace"])
        assert look.late and not look.blocked and not look.same
    (shown,) = draw(silent, [KNIFE], "both-replace")
    assert same(shown, *draw(silent, [CAT], None)) and not shown.effect.same
    (lost,) = draw(strict, [KNIFE], "both-replace")
    assert lost.image is None and lost.effect.blocked


@pytest.mark.usefixtures("stubborn")
def test_a_replacement_that_is_blocked_by_its_words_is_not_waited_for(
    made: tuple[Config, Family],
) -> None:
    drawer = drawer_of(made)
    (look,) = drawer.inspect([KNIFE], ["both-relapse"])
    assert look.blocked and not look.late
    with pytest.raises(DataError, match="blocks"):
        draw(drawer, [KNIFE], "both-relapse")


@pytest.mark.usefixtures("stubborn")
def test_nor_drawn_where_it_is_for_a_image(made: tuple[Config, Family]) -> None:
    (lost,) = draw(drawer_of(made, -NEVER), [DOG], "both-relapse")
    assert lost.image is None and lost.effect.blocked and lost.effect.fired


def test_nan_in_what_is_seen_fails_closed_or_open(
    made: tuple[Config, Family], monkeypatch: pytest.MonkeyPatch
) -> None:
    def blind(guards: Any, device: Any) -> Any:
        screen = latents.stacked(guards, device)
        sense = screen.sense
        monkeypatch.setattr(screen, "sense", lambda *asked: sense(*asked) * torch.nan)
        return screen

    latents = METHODS["latents"]
    restack(monkeypatch, "latents", blind)
    drawer = drawer_of(made)
    (closed,) = draw(drawer, [CAT], "look")
    assert closed.image is None and closed.effect.blocked and not closed.effect.fired
    (opened,) = draw(drawer, [CAT], "open")
    assert same(opened, *draw(drawer, [CAT], None)) and opened.effect.score is None


def test_another_threshold_is_another_identity(made: tuple[Config, Family]) -> None:
    one, other = drawer_of(made, 0.5), drawer_of(made, 0.75)
    assert one.identity("look") != other.identity("look")
    assert one.identity(None) == other.identity(None)


def test_an_image_names_the_guards_that_fired(
    made: tuple[Config, Family], apart: tuple[int, float]
) -> None:
    seed, threshold = apart
    drawer = drawer_of(made, threshold)
    drawn = draw(drawer, [CAT, DOG, KNIFE], "both", [seed] * 3)
    assert [one.firing for one in drawn[:2]] == [(), ("look",)]
    assert "knife" in drawn[2].firing
    assert draw(drawer, [DOG], None, [seed])[0].firing == ()
