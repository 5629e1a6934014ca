"""The autoregressive model: its words, its codes, its loss, its training and its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from examples.emoji.sprites import names
from examples.emoji.tokens import codes, model
from examples.emoji.tokens.export import export
from examples.emoji.tokens.vocabulary import BEGIN, IMAGE, tokenizer
from guard.errors import ModelError
from guard.models.conversion import assemble_emoji_tokens
from guard.models.token_images import TokenImageModel
from steering.engines.diffusion.patch_autoencoder import PatchAutoencoder


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("emoji") / "vae"
    torch.manual_seed(0)
    PatchAutoencoder(width=8, blocks=1).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WIDTH": 16, "LAYERS": 1, "HEADS": 2, "INNER": 16, "BATCH": 2}.items():
        monkeypatch.setattr(model, name, value)


def save_codebook(folder: Path) -> torch.Tensor:
    found = torch.randn(codes.CODES, 8, generator=torch.Generator().manual_seed(0))
    codes.save_file({"codes": found}, folder / "codebook.safetensors")
    return found


def test_learned_words_are_tokens_and_others_are_letters() -> None:
    words = tokenizer()
    assert words.tokenize("A teal Knife") == ["a", "teal", "knife"]
    assert words.tokenize("zebu") == ["z", "##e", "##b", "##u"]
    assert words.unk_token_id not in words("dagger's 2nd, ~é!").input_ids
    chat = words.apply_chat_template(
        [{"role": "user", "content": "a cat"}], tokenize=True, add_generation_prompt=True
    )
    ids: Any = chat["input_ids"]
    assert words.convert_ids_to_tokens(ids) == [BEGIN, "a", "cat", IMAGE]


def test_the_nearest_code_is_that_of_the_least_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    book, vectors = (
        torch.randn(7, 3, generator=generator),
        torch.randn(2, 5, 3, generator=generator),
    )
    expected = [[int(((book - v) ** 2).sum(-1).argmin()) for v in row] for row in vectors]
    assert codes.nearest(book, vectors).tolist() == expected


def test_the_loss_is_that_of_the_images_tokens_whatever_the_padding() -> None:
    torch.manual_seed(0)
    net = model.build(30).eval()
    image = torch.randint(codes.CODES, (1, 256))
    prompt = torch.tensor([[3, 4, 5]])
    whole = torch.cat([prompt, image + 30], 1)
    logprobs = net(whole).logits.log_softmax(-1)[0]
    expected = -np.mean([float(logprobs[2 + i, whole[0, 3 + i]].detach()) for i in range(256)])
    trained = model.Trained(net)
    objects = torch.zeros(1, len(names()))
    for ids, mask in (([3, 4, 5], [1, 1, 1]), ([0, 0, 3, 4, 5], [0, 0, 1, 1, 1])):
        batch = model.Batch(torch.tensor([ids]), torch.tensor([mask]), image, objects)
        loss, _ = model.losses_of(net, trained, batch)
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)


def test_the_objects_of_a_caption_are_read_at_each_token_of_the_image() -> None:
    net = model.build(30).eval()
    trained = model.Trained(net)
    with torch.no_grad():
        trained.objects.weight.zero_()
        trained.objects.bias.fill_(2.0)
    objects = torch.zeros(1, len(names()))
    objects[0, :2] = 1
    ids, image = torch.tensor([[3, 4]]), torch.randint(codes.CODES, (1, 256))
    batch = model.Batch(ids, torch.ones_like(ids), image, objects)
    _, reading = model.losses_of(net, trained, batch)
    wrong, right = np.log1p(np.exp(2.0)), np.log1p(np.exp(-2.0))
    expected = (2 * right + (len(names()) - 2) * wrong) / len(names())
    assert float(reading.detach()) == pytest.approx(expected, rel=1e-4)


def test_a_resumed_training_is_the_uninterrupted_one(vae: Path, tmp_path: Path) -> None:
    def run(name: str, *steps: int) -> dict[str, torch.Tensor]:
        out = tmp_path / name
        out.mkdir()
        save_codebook(out)
        for count in steps:
            # no decay: a run that is cut short lowers its rate sooner
            model.train(out, vae, out / "tokens", count, decay=1e-9)
        return load_file(out / "tokens.safetensors")

    whole, parts = run("whole", 4), run("parts", 2, 4)
    assert whole.keys() == parts.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-5, atol=1e-6)


def test_the_exported_model_draws(vae: Path, tmp_path: Path) -> None:
    words = tokenizer()
    net = model.build(len(words))
    weights, folder = tmp_path / "weights", tmp_path / "model"
    export(net, words, save_codebook(tmp_path), weights)
    folder.mkdir()
    assemble_emoji_tokens(tmp_path, folder, weights, vae.parent)
    loaded = TokenImageModel.load(str(folder), device="cpu")
    assert {p.dtype for p in loaded.chat.model.parameters()} == {torch.float32}
    drawn = loaded.draw([loaded.chat.prompt(text) for text in ("a cat", "a knife")], [0, 0])
    assert [image.shape for image in loaded.pixels(drawn)] == [(64, 64, 3)] * 2
    assert all(len(words) <= token < net.config.vocab_size for token in drawn[0].tokens)
    assert isinstance(loaded.chat.model, LlamaForCausalLM)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="emoji-tokens"):
        assemble_emoji_tokens(tmp_path, tmp_path, tmp_path / "nowhere")
