"""A fit in vLLM reads and says what it does in transformers, on a small model of random weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

from guard.artifact import Artifact  # noqa: E402
from guard.config.schema import load_config
from guard.data.prompts import ForgetPrompt, RetainPrompt, Split
from guard.errors import ModelError  # noqa: E402
from guard.evaluation.fluency import perplexity
from guard.fitting.steering.artifacts import to_artifact
from guard.fitting.steering.fit import SteerFit, fit_steer
from guard.fitting.steering.gate_search import GateRates
from guard.models.chat import TransformersChat
from guard.models.chat_vllm import VllmChat
from guard.plans.language import LanguagePlans
from steering.engines.vllm import offline  # noqa: E402
from steering.hidden.rows import RowGuard
from steering.methods.steer import bank_of
from steering.prompt import Prompt
from tests.steering.engines.driver import hooks_on  # noqa: E402
from tests.steering.tiny import LAYERS, prompt, random_guard  # noqa: E402
from tests.vllm.checkpoint import WIDTH, save, save_tokenizer  # noqa: E402

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_CI_ENV": "1",
}
SEQUENCES = [prompt(5 + (37 * i) % 90, seed=i) for i in range(30)]
PROMPTS = [" ".join(f"w{3 + token % 90}" for token in own) for own in SEQUENCES]


def silent(_what: str, _total: int) -> Any:
    return lambda _count: None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("fitting")
    save(made)
    save_tokenizer(made / "model")
    return made


@pytest.fixture(scope="module")
def chat(folder: Path) -> TransformersChat:
    return TransformersChat.load(str(folder / "model"), device="cpu")


@pytest.fixture(scope="module")
def other(folder: Path) -> Iterator[VllmChat]:
    """In forwards so small that sequences come in parts."""
    # what `load` sets is taken back as well: it would reach the processes of other tests
    with mock.patch.dict(os.environ, ENVIRONMENT), pytest.MonkeyPatch.context() as patch:
        patch.setattr(offline, "ROWS", 8)
        patch.setattr(offline, "TOKENS", 64)
        yield VllmChat.load(str(folder / "model"))


def test_the_model_is_the_same(chat: TransformersChat, other: VllmChat) -> None:
    assert other.fitted_model == chat.fitted_model
    assert other.end_tokens == chat.end_tokens
    assert other.prompt(PROMPTS[0]) == chat.prompt(PROMPTS[0])


@pytest.mark.parametrize("layers", [[0], [2, 0], range(LAYERS)])
def test_states_are_those_of_transformers(
    chat: TransformersChat, other: VllmChat, layers: list[int]
) -> None:
    advanced: list[int] = []
    wanted = dict(chat.states(SEQUENCES, layers))
    found = dict(other.states(SEQUENCES, layers, advanced.append))
    assert found.keys() == wanted.keys() and sum(advanced) == len(SEQUENCES)
    for i, states in found.items():
        assert states.shape == (len(SEQUENCES[i]), len(layers), WIDTH)
        assert states.dtype == torch.float32
        assert torch.allclose(states, wanted[i], rtol=1e-4, atol=1e-3 * float(wanted[i].std()))


def test_no_layer_behind_the_last_one_is_run_and_all_are_afterwards(
    chat: TransformersChat, other: VllmChat
) -> None:
    runner = other._engine._runner
    ran = [0] * LAYERS

    def counting(i: int) -> Any:
        def count(_module: Any, _inputs: Any) -> None:
            ran[i] += 1

        return count

    handles = [
        layer.register_forward_pre_hook(counting(i))
        for i, layer in enumerate(runner.model.model.layers)
    ]
    hooks = hooks_on(runner.model)
    given_up = other.states(SEQUENCES, [1])
    next(given_up)
    given_up.close()
    assert ran[0] == ran[1] > 0 and ran[2:] == [0, 0]
    assert hooks_on(runner.model) == hooks
    for handle in handles:
        handle.remove()
    assert said(other, PROMPTS) == said(chat, PROMPTS)


def test_losses_and_perplexity_are_those_of_transformers(
    chat: TransformersChat, other: VllmChat
) -> None:
    wanted = dict(chat.losses(SEQUENCES))
    found = dict(other.losses(SEQUENCES))
    assert found.keys() == wanted.keys()
    for i, losses in found.items():
        assert losses.shape == (len(SEQUENCES[i]) - 1,)
        assert torch.allclose(losses, wanted[i], rtol=1e-3, atol=1e-3)
    prompts = [Prompt(tuple(tokens)) for tokens in SEQUENCES[9:18]]
    one, two = (perplexity(model, SEQUENCES[:9], prompts) for model in (chat, other))
    assert one == pytest.approx(two, rel=1e-4)


def said(
    chat: TransformersChat | VllmChat, prompts: list[str], **guards: Any
) -> list[tuple[int, ...]]:
    given = chat.answer(prompts, max_tokens=12, what="", progress=silent, **guards)
    return [answer.tokens for answer in given]


def test_guarded_answers_are_those_of_transformers(chat: TransformersChat, other: VllmChat) -> None:
    bank = bank_of([random_guard(width=WIDTH, size=100.0)])
    fires = {"bank": bank, "guards": [RowGuard("guard", -1e9, 1.0)]}
    watches = {"bank": bank, "guards": [RowGuard("guard", 1e9, 1.0)]}
    bare = said(chat, PROMPTS)
    assert said(other, PROMPTS, **fires) == said(chat, PROMPTS, **fires)
    assert said(other, PROMPTS, **watches) == said(other, PROMPTS) == bare
    assert said(chat, PROMPTS, **fires) != bare
    with pytest.raises(KeyError):
        said(other, PROMPTS, bank=bank, guards=[RowGuard("none", 0.0, 1.0)])


def fitted(chat: TransformersChat | VllmChat) -> SteerFit:
    splits: tuple[Split, ...] = ("train", "validation", "test")
    forget = [
        ForgetPrompt(prompt=f"w7 {text}", pattern="w", split=splits[i % 3])
        for i, text in enumerate(PROMPTS[:15])
    ]
    retain = [
        RetainPrompt(prompt=text, kind=("far", "near")[i // 3 % 2], split=splits[i % 3])
        for i, text in enumerate(PROMPTS)
    ]
    return fit_steer(chat, forget, retain, rates=GateRates(0.9, 0.9), seed=3, progress=silent)


def test_a_fit_is_that_of_transformers(
    chat: TransformersChat, other: VllmChat, tmp_path: Path
) -> None:
    one, two = fitted(chat), fitted(other)
    assert two.gate.layers == one.gate.layers
    assert two.gate.threshold == pytest.approx(one.gate.threshold, rel=0.02)
    assert [trial.leaked for trial in two.trials] == [trial.leaked for trial in one.trials]
    assert two.guard.act_layers == one.guard.act_layers and two.strength == one.strength
    assert torch.allclose(two.guard.directions, one.guard.directions, rtol=1e-3, atol=1e-2)
    to_artifact(two, other, concept="topic/any").save(tmp_path / "fitted.safetensors")
    meta = Artifact.load(tmp_path / "fitted.safetensors").meta
    assert meta.model.fingerprint == chat.fitted_model.fingerprint


def test_a_process_has_the_plugin_or_has_not(folder: Path, other: VllmChat) -> None:
    with pytest.raises(ModelError, match="once for each process"):
        VllmChat.load(str(folder / "model"), config=folder / "config.toml")


UNDER = """
import json, sys
from pathlib import Path
from guard.models.chat_vllm import VllmChat

folder, prompts = Path(sys.argv[1]), json.loads(sys.argv[2])
chat = VllmChat.load(str(folder / "model"), config=folder / "config.toml")
options = {"max_tokens": 12, "what": "", "progress": lambda _what, _total: lambda _count: None}
told = {"none": [said.tokens for said in chat.answer(prompts, **options)]}
for policy in ("firm", "both"):
    given = chat.under(policy)(prompts, **options)
    read = [{n: [r.position, r.score] for n, r in said.readings.items()} for said in given]
    told[policy] = [[said.tokens, own] for said, own in zip(given, read, strict=True)]
print("told", json.dumps(told))
"""


def test_answers_under_a_policy_are_the_plugins(folder: Path, chat: TransformersChat) -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNDER, str(folder), json.dumps(PROMPTS)],
        env=dict(os.environ) | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("told")]
    told = json.loads(line.removeprefix("told"))
    assert [tuple(tokens) for tokens in told["none"]] == said(chat, PROMPTS)
    plans = LanguagePlans(load_config(folder / "config.toml"), chat.model, name="tiny")
    for policy in ("firm", "both"):
        guards = {"bank": plans.bank, "guards": plans[policy].rows()}
        wanted = chat.answer(PROMPTS, max_tokens=12, what="", progress=silent, **guards)
        assert len({answer.fired for answer in wanted}) == 2
        for (tokens, readings), answer in zip(told[policy], wanted, strict=True):
            assert tuple(tokens) == answer.tokens
            assert {n: at for n, (at, _) in readings.items()} == {
                n: reading.position for n, reading in answer.readings.items()
            }
            for name, (_, score) in readings.items():
                assert score == pytest.approx(answer.readings[name].score, rel=1e-3)
