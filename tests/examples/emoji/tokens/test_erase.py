"""EAR's loss: both prompts before the same past, window by window, small losses skipped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from examples.emoji.tokens.erase import Settings, image_states, target, train, windows
from examples.emoji.tokens.pairs import Pair, captions_with, drawn_pairs
from guard.fitting.gated.imported import LanguageImport, import_overlay
from guard.fitting.gated.token_gate import TokenGate
from guard.models.token_images import TokenImageModel
from guard.reporting.progress import stages
from steering.hidden.bank import HiddenBank
from steering.hidden.rows import RowGuard
from steering.methods import method_named
from steering.methods.fitted import FittedGuard
from steering.methods.stacking import MethodGuard, stacks
from tests.server.tiny_token_images import COLUMNS, ROWS, save_model

SETTINGS = Settings(window=5, threshold=0.0, rank=2, pairs=2, epochs=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_model(folder, longest=160)
    return folder


@pytest.fixture
def model(folder: Path) -> TokenImageModel:
    return TokenImageModel.load(str(folder), device="cpu")


def pair_of(model: TokenImageModel) -> Pair:
    return drawn_pairs(model, [*captions_with("knife", 1, 0)])[0]


def test_the_last_window_has_the_tokens_that_are_left() -> None:
    assert [*windows(12, 5)] == [slice(0, 5), slice(5, 10), slice(10, 15)]


def test_states_are_those_that_predict_the_tokens_of_the_image(model: TokenImageModel) -> None:
    pair = pair_of(model)
    logits = model.chat.model(torch.tensor([[*pair.asked, *pair.image]])).logits[0]
    states = image_states(model.chat.model, pair.asked, pair.image)
    expected = logits[len(pair.asked) - 1 : -1]
    torch.testing.assert_close(model.chat.model.lm_head(states), expected, rtol=1e-4, atol=1e-3)


def test_the_target_lies_beyond_what_stands_in_the_concepts_place(model: TokenImageModel) -> None:
    pair = pair_of(model)
    with torch.no_grad():
        asked = image_states(model.chat.model, pair.asked, pair.image)
        instead = image_states(model.chat.model, pair.instead, pair.image)
    torch.testing.assert_close(target(model.chat.model, pair, 0.0), instead)
    torch.testing.assert_close(target(model.chat.model, pair, 1.0), 2 * instead - asked)


def test_training_comes_nearer_and_writes_an_adapter(
    model: TokenImageModel, folder: Path, tmp_path: Path
) -> None:
    pair = pair_of(model)
    wanted = target(model.chat.model, pair, 1.0)

    def distance(of: TokenImageModel) -> float:
        states = image_states(of.chat.model, pair.asked, pair.image)
        return float((states.detach() - wanted).square().mean())

    before = distance(model)
    steps = train(model, "knife", SETTINGS, tmp_path)
    assert steps == SETTINGS.pairs * SETTINGS.epochs * 3
    assert distance(model) < before
    settings = json.loads((tmp_path / "adapter_config.json").read_text("utf-8"))
    assert settings["r"] == 2 and settings["base_model_name_or_path"] == str(folder)


def test_windows_under_the_threshold_are_skipped(model: TokenImageModel, tmp_path: Path) -> None:
    assert train(model, "knife", replace(SETTINGS, threshold=1e9), tmp_path) == 0
    adapter = load_file(tmp_path / "adapter_model.safetensors")
    assert not any(adapter[name].any() for name in adapter if "lora_B" in name)


def test_a_stopped_training_goes_on_where_it_was(
    model: TokenImageModel, folder: Path, tmp_path: Path
) -> None:
    train(model, "knife", SETTINGS, tmp_path / "whole")
    for epochs in (1, 2):
        again = TokenImageModel.load(str(folder), device="cpu")
        train(again, "knife", replace(SETTINGS, epochs=epochs), tmp_path / "parts")
    whole, parts = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "parts")
    )
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor)


def test_what_is_imported_draws_as_the_trained_model_on_the_rows_that_carry_it(
    model: TokenImageModel, folder: Path, tmp_path: Path
) -> None:
    train(model, "knife", replace(SETTINGS, rate=0.05), tmp_path / "ear")
    bare = TokenImageModel.load(str(folder), device="cpu")
    with stages() as progress:
        artifact = import_overlay(
            bare.chat,
            LanguageImport(tmp_path / "ear"),
            TokenGate.always(bare.chat),
            [],
            concept="object/knife",
            progress=progress,
        )
    guard = FittedGuard("ear", artifact.tensors, artifact.meta.settings)
    bank = HiddenBank(stacks([MethodGuard(method_named(artifact.meta.method), guard)], "cpu"))
    prompts = [bare.chat.prompt("a knife")] * 2
    row = RowGuard("ear", guard.number("threshold"), guard.number("strength"))
    plain, erased = bare.draw(prompts, [3, 3], bank=bank, guards=[(), (row,)])
    assert plain.tokens == bare.draw(prompts[:1], [3])[0].tokens
    assert erased.tokens == model.draw(prompts[:1], [3])[0].tokens != plain.tokens
    assert erased.readings["ear"].fired


def test_a_pair_has_the_same_scene_but_for_the_concept(model: TokenImageModel) -> None:
    twins = [*captions_with("knife", 20, 0)]
    assert all("balloon" not in each.others and "knife" not in each.others for each in twins)
    assert {len(each.others) for each in twins} == {0, 1}
    pair = pair_of(model)
    assert len(pair.image) == ROWS * COLUMNS and pair.asked != pair.instead
