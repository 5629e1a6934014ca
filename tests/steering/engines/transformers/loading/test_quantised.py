"""Weights that are quantised at load: near the checkpoint's, and another model to a guard."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from steering.engines.transformers.engine import TransformersEngine
from steering.engines.transformers.loading.models import load_language_model
from steering.engines.transformers.loading.quantised import METHODS
from steering.fingerprint import fingerprint, quantisation_of
from steering.hidden.bank import HiddenBank
from tests.server.tiny_text_service import save_model, tokenizer
from tests.steering.engines.driver import ids, serve, start
from tests.steering.tiny import tiny_model
from tests.steering.tiny_gguf import tiny_qwen, write_gguf

PACKAGES = {"int8": "torchao", "nf4": "bitsandbytes"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    words = tokenizer()
    words.save_pretrained(path)
    wide = {"hidden_size": 64, "intermediate_size": 128}
    tiny_model("llama", vocab_size=len(words), **wide).save_pretrained(path)
    return path


@pytest.mark.parametrize("method", METHODS)
def test_rows_of_quantised_weights_are_independent_and_near(folder: Path, method: str) -> None:
    pytest.importorskip(PACKAGES[method])
    plain, *_ = load_language_model(str(folder), device="cpu")
    model: Any
    model, *_ = load_language_model(str(folder), device="cpu", quantization=method)
    assert quantisation_of(plain) is None and PACKAGES[method] in str(quantisation_of(model))
    assert fingerprint(model) != fingerprint(plain)
    again, *_ = load_language_model(str(folder), device="cpu", quantization=method)
    assert fingerprint(again) == fingerprint(model)
    long = torch.randint(10, 90, (1, 40), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        near = torch.cosine_similarity(model(long).logits, plain(long).logits, dim=-1)
    assert not torch.equal(model(long).logits, plain(long).logits)
    assert near.mean() > (0.99 if method == "int8" else 0.6)
    prompts = [long[0, :n].tolist() for n in (5, 30, 12)]
    engine = TransformersEngine(model, HiddenBank(), capacity=3)
    rows, _ = serve(engine, [start(p) for p in prompts], joins=[0, 1, 1])
    alone = [serve(engine, [start(p)])[0][0] for p in prompts]
    assert ids(rows) == ids(alone)


def test_what_cannot_be_quantised_is_said_in_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for method, reason in (("int3", "there is int8, nf4"), ("int8", r"\[quantised\]")):
        monkeypatch.setitem(sys.modules, "torchao", None)
        monkeypatch.setitem(sys.modules, "torchao.quantization", None)
        with pytest.raises(ValueError, match=reason):
            load_language_model(str(folder), device="cpu", quantization=method)
    path = write_gguf(tmp_path / "tiny.gguf", tiny_qwen())
    with pytest.raises(ValueError, match="a GGUF file is unpacked"):
        load_language_model(str(path), device="cpu", quantization="int8")


def test_a_model_of_a_width_without_kernels_is_refused_at_load(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    save_model(tmp_path)  # of width 32, where a block of NF4 has 64 weights
    try:
        model, *_ = load_language_model(str(tmp_path), device="cpu", quantization="nf4")
    except ValueError as error:
        assert "cannot be loaded: " in str(error) and "\n" not in str(error)
    else:
        assert serve(TransformersEngine(model, HiddenBank(), capacity=1), [start([5, 6])])[0]


def test_a_model_is_placed_on_one_device(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, *_ = load_language_model(str(folder), device_map="auto")
    assert len({parameter.device for parameter in model.parameters()}) == 1
    real = type(model).from_pretrained

    def spread(*arguments: Any, **options: Any) -> Any:
        loaded, info = real(*arguments, **options)
        loaded.hf_device_map = {"model.embed_tokens": 0, "model.layers.0": "cpu", "lm_head": "disk"}
        return loaded, info

    monkeypatch.setattr(type(model), "from_pretrained", spread)
    with pytest.raises(ValueError, match="spread over 0, cpu, disk.*quantization"):
        load_language_model(str(folder), device_map="auto")
