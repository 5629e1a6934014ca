"""Models are read from safetensors; the error of a damaged one is one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from steering.engines.transformers.loading.models import load_language_model
from tests.steering.engines.driver import generated, weights_hash
from tests.steering.tiny import VOCABULARY, prompt, tiny_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    words = {f"w{i}": i for i in range(VOCABULARY)}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")), unk_token="w0"
    ).save_pretrained(tmp_path)
    tiny_model().save_pretrained(tmp_path)
    return tmp_path


def test_a_model_is_loaded_as_it_was_saved(folder: Path) -> None:
    model, tokenizer, _ = load_language_model(str(folder), device="cpu")
    assert not model.training
    assert weights_hash(model) == weights_hash(tiny_model())
    assert generated(model, prompt(5, 0), 4) == generated(tiny_model(), prompt(5, 0), 4)
    assert len(tokenizer) == VOCABULARY


def test_a_model_has_the_requested_dtype(folder: Path) -> None:
    model, *_ = load_language_model(str(folder), dtype="bfloat16", device="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_pickled_weights_are_not_read(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(tiny_model().state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be loaded") as caught:
        load_language_model(str(folder), device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "model.safetensors"])
def test_a_damaged_folder_is_refused_in_one_line(folder: Path, name: str) -> None:
    (folder / name).write_text("{")
    with pytest.raises(ValueError, match="cannot be loaded: ") as caught:
        load_language_model(str(folder), device="cpu")
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_hub_name_is_read_from_the_cache_where_there_is_no_network(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = tmp_path_factory.mktemp("hub")
    repository = hub / "models--owner--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    shutil.copytree(folder, repository / "snapshots" / ("a" * 40))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    model, *_ = load_language_model("owner/tiny", device="cpu")
    assert weights_hash(model) == weights_hash(tiny_model())
    with pytest.raises(ValueError, match="owner/absent cannot be loaded: .*name a directory"):
        load_language_model("owner/absent", device="cpu")


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gone cannot be loaded: "):
        load_language_model(str(tmp_path / "gone"), device="cpu")


def test_an_incomplete_checkpoint_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights are missing, model\.layers\.1\.mlp\.up_proj"):
        load_language_model(str(folder), device="cpu")
