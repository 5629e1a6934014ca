"""Chat models with images, as fits and evaluations use them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from guard.config.schema import ModelConfig
from guard.errors import ModelError
from guard.models.chat import TransformersChat, end_tokens
from steering.hidden.rows import RowGuard
from steering.methods.steer import bank_of
from tests.guard.fitting.steering.test_end_to_end import save_tokenizer
from tests.steering.engines.transformers.vision.tiny import ask, image, tiny
from tests.steering.tiny import random_guard, tiny_model


def quiet(_stage: str, _total: int) -> Callable[[int], None]:
    return lambda _count: None


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> TransformersChat:
    folder = tmp_path_factory.mktemp("qwen")
    small = tiny("qwen2_vl")
    small.model.generation_config.eos_token_id = None
    small.save(folder)
    return TransformersChat.load(str(folder), device="cpu")


def test_a_configured_model_is_loaded_as_a_server_does(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    entry = ModelConfig(name="m", source=str(tmp_path), dtype="bfloat16", device="cpu")
    loaded = TransformersChat.configured(entry)
    assert loaded.precision == "torch.bfloat16"
    wide = TransformersChat.load(str(tmp_path), device="cpu")
    assert wide.precision == "torch.float32"
    assert loaded.fitted_model.fingerprint == wide.fitted_model.fingerprint
    with pytest.raises(ModelError, match="quantization"):
        TransformersChat.configured(entry.model_copy(update={"quantization": "int9"}))


def test_a_vision_language_model_is_loaded_with_its_images(chat: TransformersChat) -> None:
    assert chat.sees and (chat.depth, chat.width) == (4, 32)
    assert chat.fitted_model.architecture == "qwen2_vl"
    pixels = image(20, 30, 1)
    prompt = chat.prompt("What?", [pixels])
    assert (
        list(prompt.tokens)
        == tiny("qwen2_vl").inputs(ask("What?", pixels))["input_ids"][0].tolist()
    )
    assert prompt.media[0].content is pixels
    assert not chat.prompt("What?").media


def test_answers_are_those_of_generate_with_guards_and_without(chat: TransformersChat) -> None:
    pixels = image(20, 30, 1)
    small = tiny("qwen2_vl")
    given = [chat.prompt("What?", [pixels]), "Hello!"]
    expected = small.generated(6, ask("What?", pixels)) + small.generated(6, ask("Hello!"))
    bare = chat.answer(given, max_tokens=6, what="answers", progress=quiet)
    assert [list(answer.tokens) for answer in bare] == expected
    guards = [RowGuard("guard", threshold=-1.0, strength=10.0)]
    bank = bank_of([random_guard()])
    steered = chat.answer(
        given, max_tokens=6, what="answers", progress=quiet, bank=bank, guards=guards
    )
    assert [answer.fired for answer in steered] == [True, True]
    assert all(a.tokens != b.tokens for a, b in zip(bare, steered, strict=True))


def test_states_and_losses_take_prompts_and_ids(chat: TransformersChat) -> None:
    prompt = chat.prompt("What?", [image(20, 30, 1)])
    states = dict(chat.states([prompt, [5, 6, 7]], [1]))
    assert states[0].shape == (len(prompt), 1, 32) and states[1].shape == (3, 1, 32)
    losses = dict(chat.losses([prompt, [5, 6, 7]]))
    assert losses[0].shape == (len(prompt) - 1,) and bool(torch.isfinite(losses[0]).all())
    other = dict(chat.losses([chat.prompt("What?", [image(20, 30, 2)])]))[0]
    assert not torch.allclose(losses[0][-5:], other[-5:])


def test_an_image_that_the_model_does_not_take_is_an_error(chat: TransformersChat) -> None:
    with pytest.raises(ValueError, match="too narrow"):
        chat.prompt("What?", [image(1, 300)])


def test_a_model_of_text_takes_no_images(tmp_path: Path) -> None:
    tiny("llava").tokenizer.save_pretrained(tmp_path)
    tiny_model().save_pretrained(tmp_path)
    chat = TransformersChat.load(str(tmp_path), device="cpu")
    assert not chat.sees
    with pytest.raises(ModelError, match="takes no images: leave them out"):
        chat.prompt("What?", [image(16, 16)])


def test_a_folder_without_an_image_processor_is_an_error_in_one_line(tmp_path: Path) -> None:
    tiny("llava").save(tmp_path)
    for name in ("preprocessor_config.json", "processor_config.json"):
        (tmp_path / name).unlink(missing_ok=True)
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        TransformersChat.load(str(tmp_path), device="cpu")
    assert "\n" not in str(caught.value)


def test_a_template_that_only_the_processor_has_is_read(tmp_path: Path) -> None:
    small = tiny("llava")
    small.save(tmp_path)
    expected = TransformersChat.load(str(tmp_path), device="cpu").prompt("Hello")
    template = small.tokenizer.chat_template
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert TransformersChat.load(str(tmp_path), device="cpu").prompt("Hello") == expected


def test_a_base_model_without_a_chat_template_is_refused_by_name(
    chat: TransformersChat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat.tokenizer, "chat_template", None)
    with pytest.raises(ModelError, match="has no chat template, .* it is a base model"):
        chat.prompt("What?")


def test_end_tokens_are_those_of_the_vocabulary() -> None:
    tokenizer = SimpleNamespace(eos_token_id=7)
    assert end_tokens([2, 100, 99, -1], tokenizer, 100) == {2, 7, 99}
    assert end_tokens(None, tokenizer, 100) == {7}
    assert end_tokens(5, SimpleNamespace(eos_token_id=None), 5) == frozenset()
