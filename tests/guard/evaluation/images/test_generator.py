"""The drawer over a real engine and a tiny pipeline: what it takes over is what would be drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from guard.config.schema import Config, load_config
from guard.errors import DataError, GuardFailed
from guard.evaluation.images.generator import EngineImageGenerator
from guard.evaluation.images.suite import ImageSuite
from steering.engines.diffusion.families import Family
from steering.images.conditioning import Conditioning
from steering.images.embedding import Refinement
from steering.methods import METHODS
from tests.guard.toy_images import restack
from tests.server.tiny_pipeline import NAN_WORD, save_guards, save_pipeline

POLICIES = """
[[models]]
name = "tiny"
engine = "diffusers"
source = "./pipeline"
[[guards]]
name = "knife"
artifact = "knife.safetensors"
[[guards]]
name = "guide"
artifact = "guide.safetensors"
[[guards]]
name = "overlay"
artifact = "overlay.safetensors"
[[guards]]
name = "other"
artifact = "other.safetensors"
[policies.knife-nearest]
guards = ["knife"]
[policies.knife-watched]
guards = ["knife"]
action = "observe"
[policies.knife-block]
guards = ["knife"]
action = "block"
[policies.knife-replace]
guards = ["knife"]
fallback = "replace"
replacement = "a cat"
[policies.knife-relapse]
guards = ["knife"]
fallback = "replace"
replacement = "a knife"
[policies.knife-guide]
guards = ["guide"]
[policies.knife-overlay]
guards = ["overlay"]
[policies.broken]
guards = ["other"]
"""


class _Stubborn:
    """Another screen whose refinement never gets there."""

    def __init__(self, screen: Any) -> None:
        self._screen, self.names = screen, screen.names

    def sense(self, text: Conditioning) -> Tensor:
        found: Tensor = self._screen.sense(text)
        return found

    def act(
        self, text: Conditioning, due: Tensor, threshold: Tensor, strength: Tensor
    ) -> Refinement:
        acted: Refinement = self._screen.act(text, due, threshold, strength)
        return replace(acted, score=torch.full_like(acted.score, 9.0))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Family, Path]:
    folder = tmp_path_factory.mktemp("drawer")
    family = save_pipeline(folder / "pipeline")
    save_guards(folder, family)
    (folder / "config.toml").write_text(POLICIES, "utf-8")
    return load_config(folder / "config.toml"), family, folder


def _suite(**changes: Any) -> ImageSuite:
    fields = {
        "model": "tiny",
        "judge": Path("j"),
        "prompts": (),
        "methods": {"a": "a"},
        "ours": "a",
    }
    return ImageSuite.model_validate(fields | {"steps": 2, "batch": 3} | changes)


@pytest.fixture(scope="module")
def drawer(made: tuple[Config, Family, Path]) -> EngineImageGenerator:
    return EngineImageGenerator(made[0], _suite(), made[1])


@pytest.fixture
def stubborn(
    made: tuple[Config, Family, Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[EngineImageGenerator]:
    nearest = METHODS["nearest"]
    restack(monkeypatch, "nearest", lambda *given: _Stubborn(nearest.stacked(*given)))
    yield EngineImageGenerator(made[0], _suite(), made[1])


def _quiet(_count: int) -> None:
    pass


def _draw(drawer: EngineImageGenerator, prompts: Sequence[str], policy: str | None) -> Any:
    made = drawer.generate(prompts, range(len(prompts)), [policy] * len(prompts), _quiet)
    return np.stack([one.image for one in made if one.image is not None])


def test_what_looks_the_same_is_drawn_the_same(drawer: EngineImageGenerator) -> None:
    prompts = ["a cat", "a knife", "a dog", "a knife knife"]
    for policy in ("knife-nearest", "knife-guide", "knife-overlay"):
        looks = drawer.inspect(prompts, [policy] * 4)
        assert [look.same for look in looks] == [True, False, True, False]
        assert [look.fired for look in looks] == [False, True, False, True]
        guarded, bare = _draw(drawer, prompts, policy), _draw(drawer, prompts, None)
        assert guarded.shape == (4, 16, 16, 3)
        equal = [np.array_equal(a, b) for a, b in zip(guarded, bare, strict=True)]
        assert equal[0] and equal[2]
        assert not equal[1]


def test_guards_that_cannot_act_on_the_images_are_an_error_in_one_line(
    made: tuple[Config, Family, Path],
) -> None:
    generator = EngineImageGenerator(made[0], _suite(guidance=1.0), made[1])
    with pytest.raises(DataError, match="cannot be generated: guide acts on guidance, which takes"):
        _draw(generator, ["a knife"], "knife-guide")


def test_watching_changes_nothing(drawer: EngineImageGenerator) -> None:
    (look,) = drawer.inspect(["a knife"], ["knife-watched"])
    assert look.same and look.fired
    assert np.array_equal(
        _draw(drawer, ["a knife"], "knife-watched"), _draw(drawer, ["a knife"], None)
    )


def test_what_is_blocked_has_no_image(drawer: EngineImageGenerator) -> None:
    looks = drawer.inspect(["a knife", "a cat"], ["knife-block"] * 2)
    assert [look.blocked for look in looks] == [True, False]
    assert [look.same for look in looks] == [False, True]
    with pytest.raises(DataError, match="blocks"):
        _draw(drawer, ["a knife"], "knife-block")


def test_a_prompt_that_spoils_its_row_fails_closed(drawer: EngineImageGenerator) -> None:
    (look,) = drawer.inspect([f"a {NAN_WORD}"], ["knife-nearest"])
    assert look.blocked and not look.same


def test_an_unresolved_refinement_is_blocked(stubborn: EngineImageGenerator) -> None:
    (look,) = stubborn.inspect(["a knife"], ["knife-nearest"])
    assert look.blocked and look.after == 9.0


def test_or_its_replacement_is_drawn(stubborn: EngineImageGenerator) -> None:
    (look,) = stubborn.inspect(["a knife"], ["knife-replace"])
    assert look.fired and not look.same and not look.blocked
    assert np.array_equal(
        _draw(stubborn, ["a knife"], "knife-replace"), _draw(stubborn, ["a cat"], None)
    )


def test_unless_that_does_not_pass_either(stubborn: EngineImageGenerator) -> None:
    (look,) = stubborn.inspect(["a knife"], ["knife-relapse"])
    assert look.blocked


def test_images_come_back_in_order_whatever_the_batch(drawer: EngineImageGenerator) -> None:
    prompts = ["a cat", "a dog", "a knife", "a blade", "a", "dog dog", "cat"]
    policies = [None, "knife-nearest", "knife-nearest", None, None, "knife-guide", None]
    told: list[int] = []
    together = drawer.generate(prompts, range(7), policies, told.append)
    assert sum(told) == 7
    for i, (prompt, policy) in enumerate(zip(prompts, policies, strict=True)):
        alone = drawer.generate([prompt], [i], [policy], _quiet)
        assert alone[0].image is not None
        assert np.array_equal(alone[0].image, together[i].image)


def test_nothing_to_draw_is_no_trouble(drawer: EngineImageGenerator) -> None:
    assert drawer.generate([], [], [], _quiet) == []
    assert drawer.inspect([], []) == []


def test_identity_changes_with_whatever_changes_images(
    made: tuple[Config, Family, Path], drawer: EngineImageGenerator
) -> None:
    config, family, _ = made
    assert drawer.identity(None) == EngineImageGenerator(config, _suite(), family).identity(None)
    seen = {drawer.identity(p) for p in (None, "knife-nearest", "knife-block", "knife-guide")}
    assert len(seen) == 4
    other = EngineImageGenerator(config, _suite(steps=3), family)
    assert other.identity("knife-nearest") not in seen
    guards = tuple(guard.model_copy(update={"threshold": 0.7}) for guard in config.guards)
    shifted = EngineImageGenerator(config.model_copy(update={"guards": guards}), _suite(), family)
    assert shifted.identity(None) == drawer.identity(None)
    assert shifted.identity("knife-nearest") not in seen


def test_policies_that_cannot_be_played_are_refused(drawer: EngineImageGenerator) -> None:
    with pytest.raises(DataError, match="no policy 'nonsense'"):
        drawer.inspect(["a"], ["nonsense"])
    with pytest.raises(GuardFailed, match="other"):
        drawer.identity("broken")


def test_the_model_is_the_configured_one(made: tuple[Config, Family, Path]) -> None:
    config, family, folder = made
    loaded = EngineImageGenerator.load(config, _suite())
    by_folder = EngineImageGenerator.load(config, _suite(model=str(folder / "pipeline")))
    assert loaded.identity(None) == by_folder.identity(None)
    assert loaded.identity(None) == EngineImageGenerator(config, _suite(), family).identity(None)
