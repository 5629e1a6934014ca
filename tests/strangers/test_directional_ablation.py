"""A method of the hidden seam from another package: served, attached, evaluated and checked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import guard as product
from guard.config.schema import load_config
from steering.fingerprint import fingerprint
from steering.hidden.bank import HiddenBank
from steering.methods.fitted import FittedGuard
from steering.methods.stacking import MethodGuard, stacks
from steering.methods.steer import SteerGuards
from tests.guard.fitting.steering.test_end_to_end import save_tokenizer, write_topic
from tests.steering.tiny import LAYERS, WIDTH, prompt, random_guard, tiny_model
from tests.strangers.artifacts import guard, registered, save, served
from tests.strangers.directional_ablation import METHOD

CONFIG = """
[[models]]
name = "tiny"
source = "{folder}/model"
[[guards]]
name = "loud"
artifact = "{folder}/ablation.safetensors"
threshold = -1e9
[[guards]]
name = "silent"
artifact = "{folder}/ablation.safetensors"
threshold = 1e9
[policies.loud]
guards = ["loud"]
[policies.silent]
guards = ["silent"]
"""
SETTINGS = {
    "sense_layers": [0],
    "act_layers": [1, 2],
    "steps": 1000,
    "threshold": 0.0,
    "strength": 1.0,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    base = tmp_path_factory.mktemp("ablation")
    save_tokenizer(base / "model")
    model = tiny_model()
    model.save_pretrained(base / "model")
    save(
        base / "ablation.safetensors",
        METHOD,
        fingerprint=fingerprint(model),
        width=WIDTH,
        layers=LAYERS,
        tensors={"direction": torch.randn(WIDTH, generator=torch.Generator().manual_seed(3))},
        settings=SETTINGS,
    )
    write_topic(base / "data")
    (base / "config.toml").write_text(CONFIG.format(folder=base))
    with registered(METHOD):
        yield base


def test_it_is_served(folder: Path) -> None:
    def ask(client: Any, policy: str) -> dict[str, Any]:
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "w5 w6 w7"}],
            "max_tokens": 6,
            "temperature": 0,
            "guard": {"policy": policy},
        }
        reply = client.post("/v1/chat/completions", json=body)
        assert reply.status_code == 200, reply.text
        answer: dict[str, Any] = reply.json()
        return answer

    with served(folder / "config.toml") as client:
        bare, silent, loud = (ask(client, policy) for policy in ("none", "silent", "loud"))
    text = [reply["choices"][0]["message"]["content"] for reply in (bare, silent, loud)]
    assert text[0] == text[1] != text[2]
    assert (silent["guard"]["outcome"], loud["guard"]["outcome"]) == ("pass", "steered")
    assert loud["guard"]["guards"][0]["method"] == "directional-ablation"


def test_it_is_attached(folder: Path) -> None:
    model = tiny_model()
    ids = torch.tensor([prompt(9, 1), prompt(9, 2)])
    states: list[torch.Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        states.append(hidden[:, -1].detach())

    config = load_config(folder / "config.toml")
    with product.attached(model, "loud", config=config) as handle:
        hook = model.get_decoder().layers[2].register_forward_hook(keep)
        model.generate(input_ids=ids, max_new_tokens=3, do_sample=False)
        hook.remove()
        assert [verdict.outcome for verdict in handle.verdicts()] == ["steered"] * 2
    direction = torch.randn(WIDTH, generator=torch.Generator().manual_seed(3))
    direction /= direction.norm()
    # nothing is left along the direction, whatever the state was
    assert all(float((state @ direction).abs().max()) < 1e-4 for state in states)


def test_it_is_evaluated_and_checked(folder: Path) -> None:
    config = folder / "config.toml"
    checked = json.loads(guard("check", config, "--json").stdout)
    assert "directional-ablation" in json.dumps(checked)
    guard(
        "eval", "unlearn", folder / "data", "--config", config, "--policy", "loud",
        "--out", folder, "--json",
    )  # fmt: skip
    figures = json.loads((folder / "loud.unlearn.json").read_text())
    assert figures["known_to_the_bare_model"] > 0


def test_it_is_stacked_with_steering_in_one_bank() -> None:
    tensors = {"direction": torch.ones(WIDTH).numpy()}
    fitted = FittedGuard("ablate", tensors, SETTINGS)
    with registered(METHOD):
        (ablation,) = stacks([MethodGuard(METHOD, fitted)])
    steering = SteerGuards([random_guard("push", sense=(3,), act=(3,))])
    bank = HiddenBank([steering, ablation])
    states = torch.randn(2, WIDTH)
    guards, age, strength = torch.tensor([0, 1]), torch.zeros(2).long(), torch.ones(2)
    change = bank.act(2, states, guards, age, strength)
    assert torch.equal(change[0], torch.zeros(WIDTH)), "that guard does not act at layer 2"
    unit = torch.ones(WIDTH) / WIDTH**0.5
    torch.testing.assert_close(change[1], -(states[1] @ unit) * unit)
    assert set(bank.decisions) == {0, 3}
