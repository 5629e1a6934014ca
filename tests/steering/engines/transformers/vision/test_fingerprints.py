"""Fingerprints of vision-language models: the loaded one, its checkpoint, and changed copies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DPTConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from steering.engines.transformers.loading.models import load_language_model
from steering.fingerprint import checkpoint_fingerprint, fingerprint
from tests.steering.engines.transformers.vision.tiny import FAMILIES, Tiny, tiny

PROJECTORS = {
    **dict.fromkeys(("gemma3", "llava", "llava-siglip", "llava_next"), "multi_modal_projector"),
    **dict.fromkeys(("idefics3", "smolvlm"), "connector"),
    "qwen3_vl": "deepstack_merger_list",
}


@pytest.fixture(scope="module", params=FAMILIES)
def saved(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Tiny, Path]:
    small = tiny(request.param)
    return request.param, small, small.save(tmp_path_factory.mktemp(request.param))


def test_a_checkpoint_has_the_fingerprint_of_its_model_in_any_dtype(
    saved: tuple[str, Tiny, Path],
) -> None:
    _, small, folder = saved
    expected = fingerprint(small.model)
    assert checkpoint_fingerprint(folder) == expected
    for dtype in ("float32", "bfloat16"):
        assert fingerprint(load_language_model(str(folder), dtype=dtype, device="cpu").model) == (
            expected
        )


def test_every_part_of_the_model_counts(saved: tuple[str, Tiny, Path], tmp_path: Path) -> None:
    """A copy with another tower, projector or language model is another model."""
    kind, small, folder = saved
    expected, prints = fingerprint(small.model), set()
    names = [name for name, _ in small.model.named_parameters()]
    projector = PROJECTORS.get(kind, "merger")
    for part in ("vis", projector, "layers.1.mlp", "embed_tokens", "lm_head"):
        name = next(name for name in names if part in name)
        weight = small.model.get_parameter(name)
        before = weight.data.clone()
        weight.data.neg_()
        prints.add(fingerprint(small.model))
        weight.data.copy_(before)
    assert len(prints) == 5 and expected not in prints
    assert fingerprint(small.model) == expected


def test_names_of_other_releases_give_the_same_fingerprint(
    saved: tuple[str, Tiny, Path], tmp_path: Path
) -> None:
    """Checkpoints are published with the names of a loaded model, and with older ones."""
    _, small, folder = saved
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    weights = {name: each.data for name, each in small.model.named_parameters()}
    older = {_older(name): weight for name, weight in weights.items()}
    assert len(older) == len(weights) and not {*older} & {*weights}
    for renamed in (weights, older):
        save_file(renamed, tmp_path / "model.safetensors")
        assert checkpoint_fingerprint(tmp_path) == fingerprint(small.model)


def _older(name: str) -> str:
    if name.startswith("lm_head"):
        return f"language_model.{name}"
    name = name.removeprefix("model.")
    return name.replace("language_model.", "language_model.model.")


@pytest.mark.parametrize("listed", [True, False])
def test_a_tied_output_counts_once_whether_the_checkpoint_lists_it_or_not(
    tmp_path: Path, listed: bool
) -> None:
    small = tiny("gemma3")
    config = small.model.config
    config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = True
    small.model.lm_head.weight = small.model.get_input_embeddings().weight
    small.save(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    (embedding,) = [name for name in weights if name.endswith("embed_tokens.weight")]
    output = "language_model.lm_head.weight"
    weights.pop(output, None)
    if listed:
        weights[output] = weights[embedding].clone()
    save_file(weights, tmp_path / "model.safetensors")
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is True
    loaded = load_language_model(str(tmp_path), device="cpu").model
    assert loaded.lm_head.weight.data_ptr() == loaded.get_input_embeddings().weight.data_ptr()
    assert isinstance(loaded.lm_head.weight, torch.Tensor)
    assert fingerprint(loaded) == checkpoint_fingerprint(tmp_path)


def test_a_tower_with_batch_normalisation_has_the_fingerprint_of_its_checkpoint(
    tmp_path: Path,
) -> None:
    """Its statistics are no parameters, and count all the same."""
    resnet = {
        "model_type": "resnet",
        "embedding_size": 4,
        "hidden_sizes": [4, 8, 8],
        "depths": [1, 1, 1],
        "layer_type": "basic",
        "out_features": ["stage1", "stage2", "stage3"],
    }
    tower = DPTConfig(
        is_hybrid=True,
        backbone_config=resnet,
        backbone_featmap_shape=[1, 8, 2, 2],
        neck_ignore_stages=[0, 1],
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=32,
    )
    text = LlamaConfig(
        vocab_size=32,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    config = LlavaConfig(vision_config=tower, text_config=text, image_token_index=31)
    model = LlavaForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path)
    kept = load_file(tmp_path / "model.safetensors")
    assert any(name.endswith("running_mean") for name in kept)
    assert checkpoint_fingerprint(tmp_path) == fingerprint(model)
    for name, values in kept.items():
        if name.endswith("running_mean"):
            kept[name] = values + 1.0
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    changed = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert checkpoint_fingerprint(tmp_path) == fingerprint(changed) != fingerprint(model)
