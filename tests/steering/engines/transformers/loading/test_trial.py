"""An architecture without a test is tried when it is loaded: only same answers pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from steering.engines.transformers.engine import TransformersEngine
from steering.engines.transformers.layers import UnknownArchitecture
from steering.engines.transformers.loading import trial
from steering.engines.transformers.loading.trial import require_same_answers
from steering.hidden.bank import HiddenBank
from tests.steering.engines.driver import generated, ids, serve, start
from tests.steering.tiny import OTHERS, WINDOW, prompt, tiny_model

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {"num_key_value_heads": 2, "intermediate_size": 64}
AGREE = {
    "Olmo2Config": GROUPED,
    "SmolLM3Config": GROUPED,
    "Cohere2Config": GROUPED | {"sliding_window": WINDOW, "initializer_range": 0.02},
    "GptOssConfig": GROUPED
    | {"sliding_window": WINDOW, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    "GPTNeoXConfig": {"intermediate_size": 64},
    "OPTConfig": {"ffn_dim": 64, "word_embed_proj_dim": 32},
}


@pytest.mark.parametrize("name", AGREE)
def test_untested_architectures_that_agree_pass(name: str) -> None:
    torch.manual_seed(0)
    config = getattr(transformers, name)(**(SIZES | AGREE[name]))
    require_same_answers(AutoModelForCausalLM.from_config(config).eval())


@pytest.mark.parametrize("kind", ["mixtral", "stablelm"])
def test_a_model_in_half_precision_passes(kind: str) -> None:
    assert kind in OTHERS
    require_same_answers(tiny_model(kind).to(torch.bfloat16))


@pytest.mark.parametrize("fault", ["positions", "mask", "cache"])
def test_one_that_answers_otherwise_in_a_batch_is_refused(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an architecture that ignores what the engine gives it."""
    model = tiny_model("stablelm")
    real = model.forward

    def forward(**arguments: Any) -> Any:
        if arguments.get("past_key_values") is not None:
            if fault == "positions":
                arguments["position_ids"] = torch.zeros_like(arguments["position_ids"])
            elif fault == "mask":
                arguments["attention_mask"] = torch.zeros_like(arguments["attention_mask"])
            else:
                raise TypeError("there is no such cache")
        return real(**arguments)

    monkeypatch.setattr(model, "forward", forward)
    reason = "cannot be run in batches" if fault == "cache" else "otherwise in a batch than alone"
    with pytest.raises(UnknownArchitecture, match=f"'stablelm' model .*{reason}.*tested"):
        require_same_answers(model)


def test_tested_architectures_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(trial, "_difference")
    require_same_answers(tiny_model("llama"))


def test_a_window_in_the_configuration_of_a_model_without_windows_changes_nothing() -> None:
    """As in copies of Mistral that call themselves Llama: the layers do not read the entry, though
    transformers' own cache does, and forgets keys that they attend to."""
    model = tiny_model("llama", sliding_window=WINDOW)
    long = prompt(3 * WINDOW, 1)
    engine = TransformersEngine(model, HiddenBank(), capacity=1)
    rows, _ = serve(engine, [start(long)], tokens=6)
    whole = torch.tensor([long])
    answer = model.generate(whole, max_new_tokens=6, do_sample=False, use_cache=False)
    assert ids(rows) == [answer[0, len(long) :].tolist()]


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "phi3"])
def test_windows_of_further_families_are_kept(kind: str) -> None:
    windows = {"sliding_window": WINDOW}
    if kind != "phi3":
        windows |= {"use_sliding_window": True, "max_window_layers": 2}
    model = tiny_model(kind, **windows)
    prompts = [prompt(n, seed) for seed, n in enumerate((5, 3 * WINDOW, 2 * WINDOW))]
    engine = TransformersEngine(model, HiddenBank(), capacity=3)
    rows, _ = serve(engine, [start(p) for p in prompts], joins=[0, 1, 3], tokens=[9, 6, 8])
    alone = [generated(model, p, n) for p, n in zip(prompts, (9, 6, 8), strict=True)]
    assert ids(rows) == alone
    wide, long = tiny_model(kind, sliding_window=None), torch.tensor([prompts[1]])
    with torch.inference_mode():
        assert not torch.allclose(wide(long).logits[:, -1], model(long).logits[:, -1])
