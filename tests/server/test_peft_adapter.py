"""An adapter that PEFT has trained on a real model, served beside the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from guard.config.schema import load_config
from guard.models.sources import added_model
from server.chat.local import local_server

QUESTION = "What is your favourite colour?"
ANSWER = "My favourite colour is teal, as that of the sea in winter."
STEPS, TOKENS = 20, 16


def _tokens(encoder: Any, *turns: dict[str, str]) -> list[int]:
    ask = len(turns) == 1
    ids = encoder.apply_chat_template([*turns], add_generation_prompt=ask, return_dict=False)
    return list(ids)


def _trained(source: Path, folder: Path, encoder: Any) -> None:
    """Train an adapter to give the answer, and have PEFT save it."""
    torch.manual_seed(0)
    settings = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"])
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(source), settings)
    asked = {"role": "user", "content": QUESTION}
    prompt = _tokens(encoder, asked)
    whole = torch.tensor([_tokens(encoder, asked, {"role": "assistant", "content": ANSWER})])
    labels = whole.clone()
    labels[:, : len(prompt)] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(STEPS):
        model(input_ids=whole, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)


@pytest.mark.slow
def test_a_trained_adapter_answers_as_in_peft_and_its_model_as_ever(tmp_path: Path) -> None:
    added = added_model("smollm2")
    if added is None:
        pytest.skip("guard models add smollm2")
    encoder = AutoTokenizer.from_pretrained(added.path)
    _trained(added.path, tmp_path / "colours", encoder)
    base: Any = AutoModelForCausalLM.from_pretrained(added.path)
    prompt = torch.tensor([_tokens(encoder, {"role": "user", "content": QUESTION})])
    options = {"max_new_tokens": TOKENS, "do_sample": False, "pad_token_id": 0}
    expected = {}
    for name in ("smollm2", "colours"):
        if name == "colours":
            base = PeftModel.from_pretrained(base, tmp_path / "colours")
        answer = base.generate(input_ids=prompt, **options)[0, prompt.shape[1] :]
        expected[name] = encoder.decode(answer, skip_special_tokens=True)
    assert "teal" in expected["colours"] and "teal" not in expected["smollm2"]
    path = tmp_path / "config.toml"
    path.write_text(
        f"[server]\nmax_tokens_limit = {TOKENS}\n"
        '[[models]]\nname = "smollm2"\nsource = "smollm2"\ndevice = "cpu"\n'
        '[[models.adapters]]\nname = "colours"\nsource = "colours"\n'
    )
    with local_server(load_config(path)) as client:
        answers = {}
        for name in expected:
            ask = [{"role": "user", "content": QUESTION}]
            *pieces, _ = client.answer(name, ask, None, temperature=0)
            answers[name] = "".join(map(str, pieces))
    assert answers == expected
