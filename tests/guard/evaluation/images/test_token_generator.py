"""Images of a language model for an evaluation: policies by row, and what they do to a prompt."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guard.config.schema import Config, load_config
from guard.errors import DataError, GuardFailed, ModelError
from guard.evaluation.images.row_tensors import RowTensors
from guard.evaluation.images.suite import ImageSuite
from guard.evaluation.images.token_generator import TokenImageGenerator
from guard.models.token_images import TokenImageModel
from tests.server.tiny_text_service import save_model as save_text_model
from tests.server.tiny_token_images import COLUMNS, ROWS, save_guards, save_model

CONFIG = """
[[models]]
name = "tiny"
source = "./model"
device = "cpu"
[[guards]]
name = "always"
artifact = "always.safetensors"
[[guards]]
name = "never"
artifact = "never.safetensors"
[policies.steer]
guards = ["always"]
[policies.both]
guards = ["always", "never"]
[policies.silent]
guards = ["never"]
[policies.observe]
guards = ["always"]
action = "observe"
[policies.block]
guards = ["always"]
action = "block"
"""
POLICIES = (None, "silent", "observe", "steer")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("tiny")
    save_guards(folder, save_model(folder / "model"))
    (folder / "config.toml").write_text(CONFIG)
    return load_config(folder / "config.toml")


@pytest.fixture(scope="module")
def generator(config: Config) -> TokenImageGenerator:
    suite = ImageSuite(model="tiny", judge=Path("j"), prompts=(), methods={}, ours="x", batch=3)
    return TokenImageGenerator.load(config, suite)


def test_images_of_silent_policies_are_the_bare_ones(generator: TokenImageGenerator) -> None:
    advanced: list[int] = []
    images = generator.generate(["a cat"] * 4, [5] * 4, POLICIES, advanced.append)
    bare, silent, observed, steered = (image.image for image in images)
    assert bare is not None and bare.shape == (4 * ROWS, 4 * COLUMNS, 3)
    assert np.array_equal(bare, silent) and np.array_equal(bare, observed)
    assert not np.array_equal(bare, steered)
    assert [image.firing for image in images] == [(), (), ("always",), ("always",)]
    assert sum(advanced) == 4


def test_the_effect_of_a_policy_is_known_from_the_prompt(generator: TokenImageGenerator) -> None:
    effects = generator.inspect(["a cat"] * 4, POLICIES)
    assert [effect.same for effect in effects] == [True, True, True, False]
    assert [effect.fired for effect in effects] == [False, False, True, True]
    drawn = generator.generate(["a cat"] * 4, [1] * 4, POLICIES, lambda _count: None)
    assert [image.effect for image in drawn] == effects


def test_a_blocked_prompt_has_no_image(generator: TokenImageGenerator) -> None:
    (effect,) = generator.inspect(["a cat"], ["block"])
    assert effect.blocked
    (image,) = generator.generate(["a cat"], [1], ["block"], lambda _count: None)
    assert image.image is None and image.effect.blocked


def test_policies_that_generate_other_images_have_other_identities(
    generator: TokenImageGenerator,
) -> None:
    policies = (None, "silent", "observe", "steer", "both", "block")
    assert len({generator.identity(policy) for policy in policies}) == len(policies)


def test_other_pixels_of_the_same_tokens_are_another_identity(
    config: Config, generator: TokenImageGenerator
) -> None:
    suite, model = generator._suite, generator._model
    assert TokenImageGenerator(config, suite, model).identity(None) == generator.identity(None)
    images, decoder = model.images, deepcopy(model.images.autoencoder)
    next(decoder.parameters()).data += 1
    changes: list[dict[str, Any]] = [
        {"codes": images.codes.flip(0)},
        {"autoencoder": decoder},
        {"top_p": 0.5},
    ]
    for change in changes:
        other = TokenImageModel(model.chat, replace(images, **change))
        found = TokenImageGenerator(config, suite, other).identity(None)
        assert found != generator.identity(None), change


def test_the_action_of_a_single_guard_is_of_the_identity(
    config: Config, generator: TokenImageGenerator
) -> None:
    policy = config.policies["both"].model_copy(update={"actions": {"never": "block"}})
    policies = {**config.policies, "both": policy}
    other = TokenImageGenerator(
        config.model_copy(update={"policies": policies}), generator._suite, generator._model
    )
    assert other.identity("both") != generator.identity("both")
    assert other.identity("steer") == generator.identity("steer")


def test_what_it_cannot_do_is_refused(generator: TokenImageGenerator) -> None:
    with pytest.raises(DataError, match="no policy 'nothing'"):
        generator.inspect(["a cat"], ["nothing"])
    with pytest.raises(DataError, match="no learned words"):
        generator.inspect(["a cat"], ["steer"], [RowTensors(word="abc")])


def test_a_broken_policy_is_an_error(config: Config) -> None:
    again = config.guards[0].model_copy(update={"name": "again", "recheck": 1e9})
    policy = config.policies["steer"].model_copy(update={"guards": ("again",), "rewind": True})
    rewinding = config.model_copy(
        update={"guards": (again,), "policies": {"steer": policy}, "models": config.models}
    )
    suite = ImageSuite(model="tiny", judge=Path("j"), prompts=(), methods={}, ours="x")
    with pytest.raises(GuardFailed, match="leave `rewind` out"):
        TokenImageGenerator.load(rewinding, suite).inspect(["a cat"], ["steer"])


def test_a_model_of_text_writes_no_images(tmp_path: Path) -> None:
    save_text_model(tmp_path)
    with pytest.raises(ModelError, match="writes no images"):
        TokenImageModel.load(str(tmp_path))
