"""GGUF files give the model, the tokenizer and the template that were written into them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from steering.engines.transformers.loading.gguf import load_gguf
from steering.engines.transformers.loading.models import load_language_model
from steering.fingerprint import fingerprint
from tests.steering.tiny_gguf import END, START, TEMPLATE, TURN, tiny_qwen, write_gguf

PROMPT = torch.tensor([[START, 2, 3, 7, TURN, START]])


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=PROMPT).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("tied", [True, False])
def test_a_file_is_the_model_that_was_written(tmp_path: Path, tied: bool) -> None:
    written = tiny_qwen(tie_word_embeddings=tied)
    path = write_gguf(tmp_path / "tiny.gguf", written)
    model, tokenizer, vision = load_language_model(str(path), device="cpu")
    assert vision is None and not model.training
    torch.testing.assert_close(logits(model), logits(written))
    assert fingerprint(model) == fingerprint(written)
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer("ab ab<|turn|>").input_ids == [7, 8, TURN]


def test_weights_have_the_requested_dtype(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", tiny_qwen())
    model, _ = load_gguf(path, "bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert fingerprint(model) == fingerprint(tiny_qwen())


def test_what_lies_beside_the_file_changes_nothing(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", tiny_qwen())
    (tmp_path / "chat_template.jinja").write_text("another one")
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "another one"}')
    (tmp_path / "config.json").write_text("{")
    _, tokenizer = load_gguf(path)
    assert tokenizer.chat_template == TEMPLATE


@pytest.mark.parametrize("flag", [True, False])
def test_the_flag_of_the_first_token_counts(tmp_path: Path, flag: bool) -> None:
    path = write_gguf(
        tmp_path / "tiny.gguf",
        tiny_qwen(),
        metadata={"tokenizer.ggml.bos_token_id": START, "tokenizer.ggml.add_bos_token": flag},
    )
    _, tokenizer = load_gguf(path)
    assert tokenizer("ab").input_ids == ([START, 7] if flag else [7])


def test_an_answer_ends_where_the_template_ends_one_too(tmp_path: Path) -> None:
    """Files of instruct models list the end of a text alone (<|end_of_text|> of Llama 3)."""
    model, _ = load_gguf(write_gguf(tmp_path / "tiny.gguf", tiny_qwen()))
    assert model.generation_config.eos_token_id == [END, TURN]
    base, tokenizer = load_gguf(write_gguf(tmp_path / "base.gguf", tiny_qwen(), template=None))
    assert base.generation_config.eos_token_id == [END] and tokenizer.chat_template is None
    listed, _ = load_gguf(
        write_gguf(
            tmp_path / "listed.gguf",
            tiny_qwen(),
            template=None,
            metadata={"tokenizer.ggml.eot_token_id": TURN},
        )
    )
    assert listed.generation_config.eos_token_id == [END, TURN]


def test_positions_are_scaled_as_the_file_says(tmp_path: Path) -> None:
    """transformers reads no scaling from most files, and answers from it as if there were none."""
    original = ("qwen2.rope.scaling.original_context_length", "original_max_position_embeddings")
    for kind, names in (("linear", ()), ("yarn", (original,))):
        rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0}
        written = tiny_qwen(rope_parameters=rope | {ours: 32 for _, ours in names})
        path = write_gguf(
            tmp_path / f"{kind}.gguf",
            written,
            metadata={
                "qwen2.rope.scaling.type": kind,
                "qwen2.rope.scaling.factor": 4.0,
                **{key: 32 for key, _ in names},
            },
        )
        model, _ = load_gguf(path)
        torch.testing.assert_close(logits(model), logits(written))
        assert not torch.allclose(logits(model), logits(tiny_qwen()))


def test_the_factors_of_llama_3_are_recognised(tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    written = tiny_qwen(rope_parameters=rope, hidden_size=128)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](written.config, torch.device("cpu"))
    plain = 1.0 / 500000.0 ** (torch.arange(0, 64, 2) / 64)
    divisors = (plain / scaled).numpy().astype(np.float32)
    path = write_gguf(tmp_path / "3.gguf", written, tensors={"rope_freqs.weight": divisors})
    model, _ = load_gguf(path)
    torch.testing.assert_close(logits(model), logits(written))
    divisors[3] = 7.0
    other = write_gguf(tmp_path / "other.gguf", written, tensors={"rope_freqs.weight": divisors})
    with pytest.raises(ValueError, match="not those of Llama 3"):
        load_gguf(other)


def test_a_window_without_a_place_bounds_the_context(tmp_path: Path) -> None:
    metadata = {"llama.attention.sliding_window": 48, "llama.rope.dimension_count": 16}
    biases = [f"blk.{i}.attn_{part}.bias" for i in range(2) for part in "qkv"]
    path = write_gguf(
        tmp_path / "mistral.gguf",
        tiny_qwen(),
        architecture="llama",
        metadata=metadata,
        without=tuple(biases),
    )
    model, _ = load_gguf(path)
    assert model.config.max_position_embeddings == 48


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architecture": "rwkv7"}, "'rwkv7' are not read; those of .*qwen2"),
        ({"architecture": "mamba"}, "'mamba' are not read"),
        ({"architecture": "clip"}, "no language model"),
        ({"metadata": {"split.count": 2}}, "one of 2 parts.*llama-gguf-split --merge"),
        ({"without": ("blk.1.ffn_up.weight",)}, "1 weights are missing"),
        (
            {"tensors": {"blk.0.attn_sinks.weight": np.zeros(2, np.float32)}},
            r"blk\.0\.attn_sinks\.weight",
        ),
        ({"metadata": {"qwen2.rope.scaling.type": "su"}}, "positions by 'su'"),
        ({"metadata": {"qwen2.rope.scaling.type": "longrope"}}, "without its factors"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", tiny_qwen(), **changes)
    with pytest.raises(ValueError, match=reason) as caught:
        load_language_model(str(path), device="cpu")
    assert "\n" not in str(caught.value) and "tiny.gguf" in str(caught.value)


def test_damaged_files_are_refused_in_one_line(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "tiny.gguf", tiny_qwen()).read_bytes()
    for content in (b"", b"GGUF", b"PK\x03\x04", whole[:200], whole[:-4000]):
        path = tmp_path / "damaged.gguf"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cannot be loaded: ") as caught:
            load_language_model(str(path), device="cpu")
        assert "\n" not in str(caught.value)


def test_a_way_to_split_texts_that_is_not_known_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", tiny_qwen())
    with caplog.at_level(logging.WARNING, "steering"):
        load_gguf(path)
    assert not caplog.records
    path = write_gguf(tmp_path / "other.gguf", tiny_qwen(), split="other")
    with caplog.at_level(logging.WARNING, "steering"):
        load_gguf(path)
    assert "'other'" in caplog.text
